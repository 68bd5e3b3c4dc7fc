"""SmoothQuant (Xiao et al. 2022): moving what makes activations hard to round into the weights that read them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_SMALLEST = 1e-5


def smooth_scales(weights: Sequence[Tensor], largest: Tensor, strength: float = 0.5) -> Tensor:
    """``s_j = max|x_j|^α / max|w_j|^(1 − α)``, ``[K]`` fp32: x / s and the columns of w · s have the product of before.

    Args:
        weights: ``[N, K]`` each, all that read x.
        largest: ``[K]``, max|x_j| over the calibration's rows.
        strength: α, how much moves: 0 makes the weights' columns alike, 1 the activations'.

    A channel that x or all weights leave at zero keeps its scale of 1.
    """
    heights = torch.stack([weight.float().abs().amax(0) for weight in weights]).amax(0)
    reach = largest.float()
    scale = reach.clamp(min=_SMALLEST) ** strength / heights.clamp(min=_SMALLEST) ** (1 - strength)
    return torch.where((reach == 0) | (heights == 0), torch.ones_like(scale), scale)
