"""Ministral: dense layers, some of which have a sliding window."""
