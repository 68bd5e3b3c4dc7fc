"""Normalisation. T tokens · F features."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bestiary.core.ops.cost import Cost, nbytes
from bestiary.core.ops.declare import normal, op
from bestiary.core.ops.elementwise import add

#: Shape, size of the values, eps: where eps is large beside the values, where it shows, and where it does not matter; then
#: as wide as a model.
_SIZES = (
    ((1, 8), 1.0, 1e-5),
    ((5, 33), 1.0, 1e-5),
    ((3, 4, 16), 1.0, 1e-5),
    ((5, 33), 1.0, 0.1),
    ((4, 24), 2e-3, 1e-5),
    ((3, 16), 1e3, 1e-6),
    ((17, 5120), 1.0, 1e-5),
)
#: Tokens, features and size of the values of a running sum, which may be larger than 16 bits hold.
_SUMS = ((6, 24, 1.0), (6, 24, 1e5), (17, 4096, 1.0))


def _values(generator: torch.Generator, *shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """Normal deviates; among small ones a row of zeros."""
    made = normal(generator, *shape, dtype=dtype, scale=scale)
    return made.index_fill_(0, torch.tensor([1], device=made.device), 0.0) if scale < 1 else made


def _inputs(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    for shape, scale, eps in _SIZES:
        yield _values(generator, *shape, dtype=dtype, scale=scale), normal(generator, shape[-1], dtype=dtype), eps
    for tokens, features, scale in _SUMS:
        x = normal(generator, tokens, features, dtype=torch.float32, scale=scale)
        yield x, normal(generator, features, dtype=dtype), 1e-5


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
    for shape, scale, eps in _SIZES:
        x, y = (_values(generator, *shape, dtype=dtype, scale=scale) for _ in "xy")
        yield x, y, normal(generator, shape[-1], dtype=dtype), eps
    for tokens, features, scale in _SUMS:
        x = normal(generator, tokens, features, dtype=torch.float32, scale=scale)
        y = normal(generator, tokens, features, dtype=dtype)
        yield x, y, normal(generator, features, dtype=dtype), 1e-5


def _two(x: Tensor, y: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    if x.shape != y.shape:  # a sum of others is no residual sum: kernels need not know how it spreads
        raise ValueError(f"x and y differ in shape: {tuple(x.shape)} and {tuple(y.shape)}")
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
