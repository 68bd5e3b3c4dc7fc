"""What ranks say to each other: sums and gathers within a tensor-parallel group, values from pipeline stage to stage.

The build inserts them, models never call them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bestiary.core.ops.cost import Cost, nbytes
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


@dataclass(frozen=True)
class Place:
    """Where a process stands in a divided engine.

    Args:
        tensor: among the ranks that share its layers' weights.
        stage: among the pipeline's stages; the last one has the logits.
        group: the torch.distributed process group of all ranks, None when alone.
    """

    tensor: Ranks = ALONE
    stage: Ranks = ALONE
    group: Any = None

    @property
    def count(self) -> int:
        """Ranks of the engine."""
        return self.tensor.size * self.stage.size

    @property
    def rank(self) -> int:
        """Among all ranks: the stages one after the other, in each its tensor-parallel ranks."""
        return self.stage.rank * self.tensor.size + self.tensor.rank

    @property
    def samples(self) -> bool:
        """Whether this rank has logits: it is in the last stage."""
        return self.stage.rank == self.stage.size - 1

    @property
    def speaker(self) -> int:
        """The rank whose tokens count: the first of the last stage."""
        return (self.stage.size - 1) * self.tensor.size

    def share(self, tokens: Tensor) -> None:
        """Overwrite ``tokens`` (any shape, contiguous, the same everywhere) with the speaker's; every rank calls it."""
        if self.count > 1:
            torch.distributed.broadcast(tokens, group=self.group, group_src=self.speaker)

    def least(self, values: Sequence[int], device: torch.device) -> list[int]:
        """The smallest of the ranks' values, one by one; every rank calls it, with as many."""
        smallest = torch.tensor(values, dtype=torch.int64, device=device)
        if self.count > 1:
            torch.distributed.all_reduce(smallest, torch.distributed.ReduceOp.MIN, group=self.group)
        return [int(value) for value in smallest.tolist()]

    def __repr__(self) -> str:
        return f"rank {self.rank} of {self.count} (tensor {self.tensor.rank}, stage {self.stage.rank})"


#: The place of the one process of an engine that is not divided.
UNDIVIDED = Place()


def _alone(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    yield normal(generator, 3, 8, dtype=dtype), ALONE


def _reduce_cost(x: Tensor, ranks: Ranks) -> Cost:
    """Of this rank's own memory; what goes over the wire is no roof of the device."""
    return Cost((ranks.size - 1) * x.numel(), nbytes(x, x))


def _gather_cost(x: Tensor, ranks: Ranks) -> Cost:
    return Cost(0, (1 + ranks.size) * nbytes(x))


def _send_cost(x: Tensor, ranks: Ranks) -> Cost:
    return Cost(0, nbytes(x) if ranks.rank < ranks.size - 1 else 0)


def _receive_cost(like: Tensor, features: tuple[int, ...], dtype: torch.dtype, ranks: Ranks) -> Cost:
    return Cost(0, like.shape[0] * math.prod(features) * dtype.itemsize)


@op(inputs=_alone, tolerances=ROUNDING, fake=like_first, rows=("x",), cost=_reduce_cost)
def all_reduce(x: Tensor, ranks: Ranks) -> Tensor:
    """``Σ x`` over the ranks, on every rank: any shape → the same shape."""
    total = x.clone()
    if ranks.size > 1:
        torch.distributed.all_reduce(total, group=ranks.group)
    return total


def _gathered(x: Tensor, ranks: Ranks) -> Tensor:
    return x.new_empty(*x.shape[:-1], x.shape[-1] * ranks.size)


@op(inputs=_alone, tolerances=EXACT, fake=_gathered, rows=("x",), cost=_gather_cost)
def all_gather(x: Tensor, ranks: Ranks) -> Tensor:
    """The ranks' x side by side along the last axis: ``[…, F]`` → ``[…, size · F]``."""
    if ranks.size == 1:
        return x.clone()
    parts = [torch.empty_like(x) for _ in range(ranks.size)]
    torch.distributed.all_gather(parts, x.contiguous(), group=ranks.group)
    return torch.cat(parts, -1)


def _nothing(x: Tensor, ranks: Ranks) -> None:
    return None


@op(inputs=_alone, tolerances=EXACT, fake=_nothing, rows=("x",), cost=_send_cost)
def send(x: Tensor, ranks: Ranks) -> None:
    """``x``, of any shape, to the next rank (pipeline stage), which calls ``receive``; the last has nobody to send to."""
    if ranks.rank < ranks.size - 1:
        torch.distributed.send(x.contiguous(), group=ranks.group, group_dst=ranks.rank + 1)


def _expected(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    for rows, features in ((3, (8,)), (5, (2, 7)), (1, ())):
        yield torch.zeros(rows, dtype=torch.int64, device=generator.device), features, dtype, ALONE


def _arrived(like: Tensor, features: tuple[int, ...], dtype: torch.dtype, ranks: Ranks) -> Tensor:
    return like.new_empty((like.shape[0], *features), dtype=dtype)


@op(inputs=_expected, tolerances=EXACT, fake=_arrived, rows=("like",), cost=_receive_cost)
def receive(like: Tensor, features: tuple[int, ...], dtype: torch.dtype, ranks: Ranks) -> Tensor:
    """``[len(like), *features]`` of ``dtype`` as the rank before (pipeline stage) sent it; the first rank gets zeros.

    ``like`` is read for its length only.
    """
    arrived = like.new_zeros((like.shape[0], *features), dtype=dtype)
    if ranks.rank > 0:
        torch.distributed.recv(arrived, group=ranks.group, group_src=ranks.rank - 1)
    return arrived
