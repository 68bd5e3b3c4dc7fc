"""Sums and gathers over the ranks of a tensor-parallel group; the build inserts them, models never call them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bestiary.core.ops.declare import EXACT, ROUNDING, like_first, normal, op


@dataclass(frozen=True)
class Ranks:
    """This process's place in a group of ranks; ``group`` is a torch.distributed process group, None when alone."""

    rank: int = 0
    size: int = 1
    group: Any = None

    def __repr__(self) -> str:
        return f"rank {self.rank} of {self.size}"


#: The one rank of an engine that is not divided.
ALONE = Ranks()


def _alone(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    yield normal(generator, 3, 8, dtype=dtype), ALONE


@op(inputs=_alone, tolerances=ROUNDING, fake=like_first)
def all_reduce(x: Tensor, ranks: Ranks) -> Tensor:
    """``Σ x`` over the ranks, on every rank: any shape → the same shape."""
    total = x.clone()
    if ranks.size > 1:
        torch.distributed.all_reduce(total, group=ranks.group)
    return total


def _gathered(x: Tensor, ranks: Ranks) -> Tensor:
    return x.new_empty(*x.shape[:-1], x.shape[-1] * ranks.size)


@op(inputs=_alone, tolerances=EXACT, fake=_gathered)
def all_gather(x: Tensor, ranks: Ranks) -> Tensor:
    """The ranks' x side by side along the last axis: ``[…, F]`` → ``[…, size · F]``."""
    if ranks.size == 1:
        return x.clone()
    parts = [torch.empty_like(x) for _ in range(ranks.size)]
    torch.distributed.all_gather(parts, x.contiguous(), group=ranks.group)
    return torch.cat(parts, -1)
