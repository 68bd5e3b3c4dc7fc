"""Mixtral: layers with a mixture of experts."""
