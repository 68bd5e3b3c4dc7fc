"""Quantization methods: the base of your own, and the SDK's.

A method is a class of its options, which says how a weight is stored, made and used in calls of :mod:`bestiary.ops`; every
model has it from then on. Register the class: ``Quantization(name="nf4", method="my_plugin.nf4:NF4")``.
"""

from bestiary.core.quant.layout import Piece, Stored
from bestiary.core.quant.method import Method
from bestiary.core.quant.methods import FP8, W8A8, Int4, Int8

__all__ = ["FP8", "W8A8", "Int4", "Int8", "Method", "Piece", "Stored"]
