"""Quantization: rules, methods, layouts, quantizers, calibration: which method each weight gets, how methods store, make and
use weights. No kernel lives here."""
