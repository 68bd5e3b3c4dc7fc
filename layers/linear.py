"""A product with a weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bestiary import ops
from bestiary.layers.shard import Replicated, Shard


class Linear(nn.Module):
    """``y = x · weightᵀ + bias``: ``[T, in]`` → ``[T, out]``; weight ``[out, in]``, bias ``[out]``."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = False, shard: Shard | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None
        self.shard = shard or Replicated()

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.weight, self.bias)
