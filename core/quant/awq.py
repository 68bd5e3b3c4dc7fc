"""Activation-aware weight quantization (Lin et al. 2023). N output features · K input features · R sample rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bestiary.core.quant.rounding import Codes, Grid, clipped, grouped, output_error, round_to_nearest, values

_SMALLEST = 1e-4


class Reader(NamedTuple):
    """A weight ``[N, K]`` that reads the value to be scaled, and rows ``[R, K]`` that it read (an expert's: its own)."""

    weight: Tensor
    x: Tensor


def search_scales(readers: Sequence[Reader], magnitude: Tensor, grid: Grid, steps: int = 20) -> Tensor:
    """The scales s ``[K]`` fp32 for which rounding the weights costs their outputs least.

    Weights' columns are multiplied by s before they are rounded and what they read is divided by it. Tried are all ones and
    ``s = m^α / a^(1 − α)`` for α = 0, 1/steps, … below 1: m is the inputs' mean magnitude, a the weights' mean magnitude
    relative to the largest of their group. The error is ``Σ ‖x / s · Q(W · s)ᵀ − x · Wᵀ‖²`` over the readers.

    Args:
        readers: all weights that will be rounded and read the same value.
        magnitude: ``[K]``, mean |x| over the calibration's rows.
    """
    least, best = error_of(readers, torch.ones_like(magnitude, dtype=torch.float32), grid), None
    height = _height([reader.weight for reader in readers], grid)
    for step in range(steps):
        alpha = step / steps
        scale = magnitude.float() ** alpha / (height ** (1 - alpha) + _SMALLEST)
        scale = scale.clamp(min=_SMALLEST)
        scale = scale / (scale.max() * scale.min()).sqrt()
        found = error_of(readers, scale, grid)
        if found < least:
            least, best = found, scale
    return torch.ones_like(height) if best is None else best


def error_of(readers: Sequence[Reader], scale: Tensor, grid: Grid) -> float:
    """The sum over readers of the squared error of their outputs, when columns are rounded as scaled by ``scale`` [K]."""
    total = 0.0
    for weight, x in readers:
        wide = weight.float()
        difference = values(round_to_nearest(wide * scale, grid), grid.group) / scale - wide
        total += float((x.float() @ difference.t()).square().sum())
    return total


def clip(weight: Tensor, x: Tensor, grid: Grid) -> Codes:
    """Round to nearest with each group's range shrunk, by at most half, to where its part of the output errs least.

    Args:
        weight: ``[N, K]``, already scaled.
        x: ``[R, K]``, rows that it reads, already divided.
    """
    return clipped(weight, grid, output_error(x, grid.width(weight.shape[1])))


def _height(weights: Sequence[Tensor], grid: Grid) -> Tensor:
    """Mean over all rows of |w| as a part of the largest in its group, ``[K]``."""
    total, rows = torch.zeros(weights[0].shape[1], device=weights[0].device), 0
    for weight in weights:
        pieces = grouped(weight.float().abs(), grid.width(weight.shape[1]))
        parts = pieces / pieces.amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        total += parts.flatten(1)[:, : weight.shape[1]].sum(0)
        rows += weight.shape[0]
    return total / rows
