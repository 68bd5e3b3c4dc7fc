"""Weights in few bits, and what reads them. T tokens · N rows · K columns · V vocabulary · E experts · F features of one.

A quantized weight is ``codes`` with a ``scale`` for each block of rows and columns, and for some a ``zero``:

- codes ``[…, N, K]`` int8 or float8, or uint8 ``[…, N, ⌈K/2⌉]`` with two columns of 4 bits in a byte, the even one low;
- scale ``[…, ⌈N/block[0]⌉, ⌈K/block[1]⌉]``: the last block of an axis is shorter where it doesn't divide;
- zero None: ``w = scale · code`` (of 4 bits ``scale · (code − 8)``); uint8: ``w = scale · (code − zero)``; floating:
  ``w = scale · code + zero``.

That is computed in fp32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bestiary.core.ops.activation import ACTIVATION_FLOPS
from bestiary.core.ops.cost import Cost, nbytes
from bestiary.core.ops.declare import ROUNDING, integers, normal, op
from bestiary.core.ops.linear import PRODUCT, embedding, linear, logits
from bestiary.core.ops.moe import TWO_PRODUCTS, moe, moe_route

Block = tuple[int, int]
#: ``scale · code + zero``, or ``scale · (code − zero)``.
_RESTORING = 2
_CONSTANTS = ("codes", "scale", "zero", "bias")
#: Rows, columns, block, kind of codes, kind of zeros; the last are as large as a model's.
_FORMS = (
    (8, 16, (1, 16), "int8", None),
    (33, 48, (1, 32), "int4", None),
    (7, 31, (1, 8), "int4", "integer"),
    (12, 64, (1, 32), "int4", "minimum"),
    (5, 40, (1, 40), "int8", None),
    (9, 20, (4, 16), "fp8", None),
    (4, 24, (1, 8), "int8", None),
    (256, 4096, (1, 64), "int4", None),
    (256, 4096, (1, 4096), "int8", None),
)
_LARGE = 2  # of these
#: Tokens of a product with each of them.
_TOKENS = (1, 5, 17, 3, 2, 4, 3, 3, 2)


def _stored(
    generator: torch.Generator,
    lead: tuple[int, ...],
    rows: int,
    columns: int,
    block: Block,
    kind: str,
    zeros: str | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Random codes, scales and zeros of a weight ``[*lead, rows, columns]`` of variance about 1 / columns."""
    blocks = (*lead, -(-rows // block[0]), -(-columns // block[1]))
    size = {"int8": 64.0, "int4": 4.6, "fp8": 1.0}[kind] * columns**0.5
    scale = (normal(generator, *blocks, dtype=torch.float32).abs() + 0.5) / size
    if kind == "fp8":
        return normal(generator, *lead, rows, columns, dtype=torch.float32).to(torch.float8_e4m3fn), scale, None
    if kind == "int8":
        return (integers(generator, 255, *lead, rows, columns) - 127).to(torch.int8), scale, None
    scale = scale.half()
    zero = None
    if zeros is not None:
        zero = integers(generator, 16, *blocks).byte() if zeros == "integer" else scale * -7
    return integers(generator, 256, *lead, rows, -(-columns // 2)).byte(), scale, zero


def _forms(generator: torch.Generator, lead: tuple[int, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for rows, columns, block, kind, zeros in _FORMS[: -_LARGE if lead else None]:
        yield (*_stored(generator, lead, rows, columns, block, kind, zeros), block, columns)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dequantize_inputs(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    for lead in ((3,), ()):
        for form in _forms(generator, lead):
            yield (*form, _name(dtype))


def _restored(codes: Tensor, scale: Tensor, zero: Tensor | None, block: Block, columns: int, dtype: str) -> Tensor:
    return scale.new_empty((*codes.shape[:-1], columns), dtype=getattr(torch, dtype))


def _dequantize_cost(codes: Tensor, scale: Tensor, zero: Tensor | None, block: Block, columns: int, dtype: str) -> Cost:
    made = codes.numel() // max(1, codes.shape[-1]) * columns
    return Cost(_RESTORING * made, nbytes(codes, scale, zero) + made * getattr(torch, dtype).itemsize)


def spread(blocks: Tensor, block: Block, rows: int, columns: int) -> Tensor:
    """A number for each block → one for each element: ``[…, ⌈N/block[0]⌉, ⌈K/block[1]⌉]`` → ``[…, N or 1, K or 1]``.

    An axis that is one block stays one element, which broadcasts.
    """
    for axis, size, length in ((-2, block[0], rows), (-1, block[1], columns)):
        if blocks.shape[axis] > 1 and size > 1:
            blocks = blocks.repeat_interleave(size, axis).narrow(axis, 0, length)
    return blocks


def unpacked(codes: Tensor, columns: int) -> Tensor:
    """Two columns of a byte side by side: uint8 ``[…, ⌈K/2⌉]`` → ``[…, K]`` of 0 … 15."""
    return torch.stack((codes & 15, codes >> 4), -1).flatten(-2)[..., :columns]


def _some(args: tuple[Any, ...], rows: Sequence[int]) -> tuple[Any, ...]:
    """Some rows, or some experts, of a weight: each with a scale of its own."""
    codes, scale, zero, block, *rest = args
    one = block if codes.ndim > 2 else (1, block[1])
    chosen = torch.tensor(list(rows), dtype=torch.int64, device=codes.device)
    blocks = chosen if codes.ndim > 2 else chosen // block[0]
    picked = codes.view(torch.uint8).index_select(0, chosen).view(codes.dtype)
    return picked, scale[blocks], None if zero is None else zero[blocks], one, *rest


@op(
    inputs=_dequantize_inputs,
    tolerances=ROUNDING,
    fake=_restored,
    constants=_CONSTANTS,
    rows=_some,
    cost=_dequantize_cost,
)
def dequantize(codes: Tensor, scale: Tensor, zero: Tensor | None, block: Block, columns: int, dtype: str) -> Tensor:
    """The weight that codes, scales and zeros stand for: ``[…, N, K]`` in ``dtype``, K being ``columns``."""
    rows = codes.shape[-2]
    wide = (unpacked(codes, columns) if codes.dtype is torch.uint8 else codes).float()
    factor = spread(scale.float(), block, rows, columns)
    if zero is None:
        made = (wide - 8 if codes.dtype is torch.uint8 else wide) * factor
    elif zero.dtype is torch.uint8:
        made = (wide - spread(zero.float(), block, rows, columns)) * factor
    else:
        made = wide * factor + spread(zero.float(), block, rows, columns)
    return made.to(getattr(torch, dtype))


def _linear_inputs(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    for tokens, form in zip(_TOKENS, _forms(generator), strict=True):
        codes, *_, columns = form
        bias = normal(generator, codes.shape[0], dtype=dtype) if tokens % 2 else None
        yield normal(generator, tokens, columns, dtype=dtype), *form, _name(dtype), bias


def _product(x: Tensor, codes: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], codes.shape[0])


def _linear_cost(
    x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, block: Block, columns: int, dtype: str,
    bias: Tensor | None = None,
) -> Cost:  # fmt: skip
    made, weights = x.numel() // columns * codes.shape[0], codes.shape[0] * columns
    flops = 2 * made * columns + _RESTORING * weights + (0 if bias is None else made)
    return Cost(flops, nbytes(x, codes, scale, zero, bias) + made * x.element_size())


@op(inputs=_linear_inputs, tolerances=PRODUCT, fake=_product, constants=_CONSTANTS, rows=("x",), cost=_linear_cost)
def quantized_linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    block: Block,
    columns: int,
    dtype: str,
    bias: Tensor | None = None,
) -> Tensor:
    """``x · weightᵀ + bias`` of a quantized weight: x ``[T, K]`` in ``dtype`` → ``[T, N]``."""
    return linear(x, dequantize(codes, scale, zero, block, columns, dtype), bias)


def _logit_inputs(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    for *call, _ in _linear_inputs(generator, dtype):
        yield tuple(call)


def _logit_shape(x: Tensor, codes: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], codes.shape[0], dtype=torch.float32)


def _logits_cost(
    x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, block: Block, columns: int, dtype: str
) -> Cost:
    one = _linear_cost(x, codes, scale, zero, block, columns, dtype)
    return Cost(one.flops, one.bytes + x.numel() // columns * codes.shape[0] * (4 - x.element_size()))


@op(
    inputs=_logit_inputs,
    tolerances=dict.fromkeys(("float32", "bfloat16", "float16"), PRODUCT["float32"]),
    fake=_logit_shape,
    constants=_CONSTANTS,
    rows=("x",),
    cost=_logits_cost,
)
def quantized_logits(
    x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, block: Block, columns: int, dtype: str
) -> Tensor:
    """``logits`` of a quantized weight, restored in ``dtype`` and multiplied in fp32: x ``[R, K]`` → ``[R, V]`` fp32."""
    return logits(x, dequantize(codes, scale, zero, block, columns, dtype))


def _embedding_inputs(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    for tokens, form in zip((1, 9, 0, 4, 2, 6, 3, 3, 2), _forms(generator), strict=True):
        yield integers(generator, form[0].shape[0], tokens), *form, _name(dtype)
    rows, block = 40000, (1, 32)  # more than 15 bits count
    yield integers(generator, rows, 9), *_stored(generator, (), rows, 64, block, "int4", None), block, 64, _name(dtype)


def _looked_up(
    ids: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, block: Block, columns: int, dtype: str
) -> Tensor:
    return scale.new_empty(*ids.shape, columns, dtype=torch.promote_types(getattr(torch, dtype), torch.float32))


def _lookup_cost(
    ids: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, block: Block, columns: int, dtype: str
) -> Cost:
    of_row = nbytes(codes[:1], scale[:1], None if zero is None else zero[:1]) + 4 * columns
    return Cost(_RESTORING * ids.numel() * columns, nbytes(ids) + ids.numel() * of_row)


@op(
    inputs=_embedding_inputs,
    tolerances=ROUNDING,
    fake=_looked_up,
    constants=_CONSTANTS,
    rows=("ids",),
    cost=_lookup_cost,
)
def quantized_embedding(
    ids: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, block: Block, columns: int, dtype: str
) -> Tensor:
    """Rows of a quantized table, restored in ``dtype``: ids ``[T]`` int64 → ``[T, K]`` fp32."""
    return embedding(ids, dequantize(codes, scale, zero, block, columns, dtype))


def _moe_inputs(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    shapes = (
        (1, 8, 2, 32, 24, None, "int8", None),
        (0, 4, 2, 8, 8, 8, "int4", None),
        (5, 3, 2, 33, 17, 8, "int4", "integer"),
        (6, 4, 2, 256, 320, 64, "int4", None),
    )
    for tokens, experts, top_k, hidden, features, group, kind, zeros in shapes:
        weights, chosen = moe_route.reference(normal(generator, tokens, experts, dtype=dtype), top_k, "softmax")
        wide, long = (1, group or hidden), (1, group or features)
        gate, up = (_stored(generator, (experts,), features, hidden, wide, kind, zeros) for _ in "gu")
        down = _stored(generator, (experts,), hidden, features, long, kind, zeros)
        x = normal(generator, tokens, hidden, dtype=dtype)
        yield x, weights, chosen, *gate, *up, *down, wide, wide, long, hidden, features, "silu", _name(dtype)


def _moe_shape(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape)


def _moe_cost(x: Tensor, weights: Tensor, experts: Tensor, *rest: Any) -> Cost:
    """Only experts that some token chose are read."""
    *matrices, _, _, _, hidden, features, _, _ = rest
    calls, used, count = experts.numel(), len(set(experts.flatten().tolist())), matrices[0].shape[0]
    products = 6 * features * hidden + (ACTIVATION_FLOPS + 1) * features + 2 * hidden
    flops = calls * products + used * _RESTORING * 3 * hidden * features
    return Cost(flops, nbytes(x, weights, experts, x) + used * nbytes(*matrices) // count)


@op(
    inputs=_moe_inputs,
    tolerances=TWO_PRODUCTS,
    fake=_moe_shape,
    constants=tuple(f"{name}{part}" for name in ("gate", "up", "down") for part in ("", "_scale", "_zero")),
    rows=("x", "weights", "experts"),
    cost=_moe_cost,
)
def quantized_moe(
    x: Tensor,
    weights: Tensor,
    experts: Tensor,
    gate: Tensor,
    gate_scale: Tensor,
    gate_zero: Tensor | None,
    up: Tensor,
    up_scale: Tensor,
    up_zero: Tensor | None,
    down: Tensor,
    down_scale: Tensor,
    down_zero: Tensor | None,
    gate_block: Block,
    up_block: Block,
    down_block: Block,
    hidden: int,
    features: int,
    kind: str,
    dtype: str,
) -> Tensor:
    """``moe`` of quantized weights; ``gate``, ``up`` and ``down`` are their codes, with E in front. x ``[T, hidden]`` in ``dtype``."""
    return moe(
        x,
        weights,
        experts,
        dequantize(gate, gate_scale, gate_zero, gate_block, hidden, dtype),
        dequantize(up, up_scale, up_zero, up_block, hidden, dtype),
        dequantize(down, down_scale, down_zero, down_block, features, dtype),
        kind,
    )
