"""Watching an engine run: every op call with its kernel, shapes, time and cost, and what the device could do."""
