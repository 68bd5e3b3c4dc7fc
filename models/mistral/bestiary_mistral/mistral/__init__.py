"""Mistral: dense layers, a sliding window on all of them or on none."""
