"""Products with weights. T tokens · K input features · N output features · V vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bestiary.core.ops.cost import Cost, nbytes
from bestiary.core.ops.declare import EXACT, Tolerance, integers, normal, op

PRODUCT = {
    "float64": Tolerance(1e-9, 1e-9),
    "float32": Tolerance(1e-4, 1e-5),
    "bfloat16": Tolerance(3e-2, 1.6e-2),
    "float16": Tolerance(4e-3, 2e-3),
}


def _linear_inputs(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    # The last has as many features as a model, and several tiles of results.
    for tokens, n, k in ((1, 8, 16), (5, 33, 48), (17, 64, 31), (3, 70, 301), (3, 640, 4096)):
        weight = normal(generator, n, k, dtype=dtype, scale=k**-0.5)
        bias = normal(generator, n, dtype=dtype) if tokens != 1 else None
        yield normal(generator, tokens, k, dtype=dtype), weight, bias
    wide = normal(generator, 3, 64, dtype=dtype)
    yield wide[:, :32], normal(generator, 16, 32, dtype=dtype, scale=32**-0.5), None  # rows with a stride


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _linear_cost(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Cost:
    rows, (features, width) = x.numel() // x.shape[-1], weight.shape
    made = rows * features
    flops = 2 * made * width + (0 if bias is None else made)
    return Cost(flops, nbytes(x, weight, bias) + made * x.element_size())


@op(inputs=_linear_inputs, tolerances=PRODUCT, fake=_product, rows=("x",), cost=_linear_cost)
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x · weightᵀ + bias``: x ``[T, K]``, weight ``[N, K]``, bias ``[N]`` → ``[T, N]`` in x's dtype."""
    return F.linear(x, weight, bias)


def _logit_inputs(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    for x, weight, _ in _linear_inputs(generator, dtype):
        yield x, weight


def _logit_shape(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0], dtype=torch.float32)


def _logits_cost(x: Tensor, weight: Tensor) -> Cost:
    made = x.numel() // x.shape[-1] * weight.shape[0]
    return Cost(2 * made * weight.shape[1], nbytes(x, weight) + made * torch.float32.itemsize)


@op(
    inputs=_logit_inputs,
    tolerances=dict.fromkeys(("float32", "bfloat16", "float16"), PRODUCT["float32"]),
    fake=_logit_shape,
    rows=("x",),
    cost=_logits_cost,
)
def logits(x: Tensor, weight: Tensor) -> Tensor:
    """``x · weightᵀ`` in fp32 whatever the dtype: x ``[R, K]``, weight ``[V, K]`` → ``[R, V]`` fp32.

    Rounded to 16 bits, the likeliest tokens would often tie: between 16 and 32 bfloat16 has steps of an eighth.
    """
    return F.linear(x.float(), weight.float())


def _embedding_inputs(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    for tokens, vocabulary, features in ((1, 7, 8), (9, 31, 33), (9, 40000, 64)):
        yield integers(generator, vocabulary, tokens), normal(generator, vocabulary, features, dtype=dtype)


def _looked_up(ids: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    return weight.new_empty(*ids.shape, weight.shape[1], dtype=torch.promote_types(weight.dtype, torch.float32))


def _lookup_cost(ids: Tensor, weight: Tensor, *rest: Any) -> Cost:
    made = ids.numel() * weight.shape[1]
    wide = torch.promote_types(weight.dtype, torch.float32).itemsize
    return Cost(0, nbytes(ids) + made * (weight.element_size() + wide))


@op(inputs=_embedding_inputs, tolerances=EXACT, fake=_looked_up, rows=("ids",), cost=_lookup_cost)
def embedding(ids: Tensor, weight: Tensor) -> Tensor:
    """``weight[ids]`` in fp32 whatever the dtype: ids ``[T]`` int64, weight ``[V, K]`` → ``[T, K]`` fp32.

    The sum that runs through a model's layers begins here. Rounded to 16 bits after each of them, it would lose more than
    all products together, so it stays in fp32; norms bring what the layers read back to the weights' dtype.
    """
    return _wide(weight.index_select(0, ids))


def _sharded_embedding_inputs(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    for start, rows, features in ((0, 8, 33), (8, 8, 33), (20000, 20000, 64)):
        yield integers(generator, 2 * rows, 9), normal(generator, rows, features, dtype=dtype), start


@op(inputs=_sharded_embedding_inputs, tolerances=EXACT, fake=_looked_up, rows=("ids",), cost=_lookup_cost)
def embedding_shard(ids: Tensor, weight: Tensor, start: int) -> Tensor:
    """Rows ``start … start + V`` of a larger table: ids outside of them give zeros, so that the ranks' sum is the lookup.

    ids ``[T]`` int64, weight ``[V, K]`` → ``[T, K]`` fp32.
    """
    local = ids - start
    inside = (local >= 0) & (local < weight.shape[0])
    return _wide(weight.index_select(0, local * inside) * inside.unsqueeze(-1).to(weight.dtype))


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
