"""Tokens to features and back."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bestiary import ops
from bestiary.layers.shard import Vocabulary


class Embedding(nn.Module):
    """Token ids ``[T]`` → features ``[T, size]`` fp32, the first term of the sum that runs through the layers; weight ``[vocabulary, size]``."""

    def __init__(self, vocabulary: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocabulary, size))
        self.shard = Vocabulary()

    def forward(self, ids: Tensor) -> Tensor:
        return ops.embedding(ids, self.weight)


class Head(nn.Module):
    """Features ``[R, size]`` → logits ``[R, vocabulary]`` fp32; ``tied`` shares the embedding's weight."""

    def __init__(self, size: int, vocabulary: int, *, tied: Embedding | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocabulary, size)) if tied is None else tied.weight
        self.shard = Vocabulary()

    def forward(self, x: Tensor) -> Tensor:
        return ops.logits(x, self.weight)
