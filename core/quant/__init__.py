"""Quantization: rules, methods, layouts, quantizers, calibration."""
