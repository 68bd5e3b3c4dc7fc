"""Sums, products and row selection. T tokens · F features · R rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bestiary.core.ops.cost import Cost, nbytes
from bestiary.core.ops.declare import EXACT, integers, normal, op


def _pairs(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    for shape in ((1, 8), (5, 33), (3, 4, 16), (17, 4096)):
        yield normal(generator, *shape, dtype=dtype), normal(generator, *shape, dtype=dtype)
    for shape in ((6, 24), (17, 4096)):  # a running sum
        yield normal(generator, *shape, dtype=torch.float32), normal(generator, *shape, dtype=dtype)


def _broadcast(x: Tensor, y: Tensor) -> Tensor:
    return x.new_empty(np.broadcast_shapes(x.shape, y.shape), dtype=torch.result_type(x, y))


def _pair_cost(x: Tensor, y: Tensor) -> Cost:
    size = math.prod(np.broadcast_shapes(x.shape, y.shape))
    return Cost(size, nbytes(x, y) + size * torch.result_type(x, y).itemsize)


@op(inputs=_pairs, fake=_broadcast, rows=("x", "y"), cost=_pair_cost)
def add(x: Tensor, y: Tensor) -> Tensor:
    """``x + y``, shapes broadcast and dtypes promoted as in torch."""
    return x + y


@op(inputs=_pairs, fake=_broadcast, rows=("x", "y"), cost=_pair_cost)
def mul(x: Tensor, y: Tensor) -> Tensor:
    """``x · y``, shapes broadcast and dtypes promoted as in torch."""
    return x * y


def _rows(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    for tokens, rows, features in ((1, 1, 33), (7, 3, 33), (4, 6, 33), (300, 70, 4096)):
        yield normal(generator, tokens, features, dtype=dtype), integers(generator, tokens, rows)


def _selected(x: Tensor, rows: Tensor) -> Tensor:
    return x.new_empty(rows.shape[0], *x.shape[1:])


def _selection_cost(x: Tensor, rows: Tensor) -> Cost:
    return Cost(0, nbytes(rows) + 2 * rows.numel() * math.prod(x.shape[1:]) * x.element_size())


@op(inputs=_rows, tolerances=EXACT, fake=_selected, rows=("rows",), cost=_selection_cost)
def select_rows(x: Tensor, rows: Tensor) -> Tensor:
    """``x[rows]``: x ``[T, F]``, rows ``[R]`` int64 → ``[R, F]``."""
    return x.index_select(0, rows)
