"""Engines: built from a checkpoint for a device, loaded to run."""
