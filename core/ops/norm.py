"""Normalisation. T tokens · F features."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bestiary.core.ops.cost import Cost, nbytes
from bestiary.core.ops.declare import normal, op
from bestiary.core.ops.elementwise import add


def _inputs(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    for shape in ((1, 8), (5, 33), (3, 4, 16)):
        yield normal(generator, *shape, dtype=dtype), normal(generator, shape[-1], dtype=dtype), 1e-5
    yield normal(generator, 6, 24, dtype=torch.float32), normal(generator, 24, dtype=dtype), 1e-5  # a running sum


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x.new_empty(x.shape, dtype=weight.dtype)


# Of one value: its square and the sum of those, its scaling, the weight.
_NORM_FLOPS = 4


def _norm_cost(x: Tensor, weight: Tensor, eps: float) -> Cost:
    return Cost(_NORM_FLOPS * x.numel(), nbytes(x, weight) + x.numel() * weight.element_size())


@op(inputs=_inputs, fake=_normed, rows=("x",), cost=_norm_cost)
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x / √(mean(x²) + eps) · weight`` over the last axis, statistics in fp32 (Zhang & Sennrich 2019).

    x ``[…, F]``, weight ``[F]`` → ``[…, F]`` in the weight's dtype.
    """
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * scaled.to(weight.dtype)


def _add_inputs(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    for x, weight, eps in _inputs(generator, dtype):
        yield x, normal(generator, *x.shape, dtype=dtype), weight, eps


def _two(x: Tensor, y: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, y.dtype))
    return _normed(total, weight, eps), total


def _add_norm_cost(x: Tensor, y: Tensor, weight: Tensor, eps: float) -> Cost:
    total = torch.promote_types(x.dtype, y.dtype).itemsize
    written = x.numel() * (weight.element_size() + total)
    return Cost((_NORM_FLOPS + 1) * x.numel(), nbytes(x, y, weight) + written)


@op(inputs=_add_inputs, fake=_two, rows=("x", "y"), cost=_add_norm_cost)
def add_rms_norm(x: Tensor, y: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The residual sum and its norm: ``(rms_norm(x + y), x + y)``; x, y ``[T, F]``, weight ``[F]``.

    The norm has the weight's dtype, the sum the wider of its terms'.
    """
    total = add(x, y)
    return rms_norm(total, weight, eps), total
