"""Normalisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bestiary import ops


class RMSNorm(nn.Module):
    """``x / √(mean(x²) + eps) · weight`` over the last axis, in the weight's dtype; weight ``[size]``."""

    def __init__(self, size: int, *, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight, self.eps)
