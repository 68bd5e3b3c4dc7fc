"""Activations in 8 bits, and products of them with weights in 8 bits. T tokens · N rows · K columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bestiary.core.ops.cost import Cost, nbytes
from bestiary.core.ops.declare import EXACT, Tolerance, integers, normal, op
from bestiary.core.ops.linear import PRODUCT
from bestiary.core.ops.quantized import Block, spread

#: Largest code, and the dtype of codes.
KINDS = {"int8": (127.0, torch.int8), "fp8": (448.0, torch.float8_e4m3fn)}


def _rows_inputs(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    for kind in KINDS:
        for tokens, columns, group in (
            (1, 16, 16),
            (5, 33, 33),
            (3, 48, 16),
            (4, 20, 8),
            (0, 8, 8),
            (17, 4096, 4096),
            (17, 4096, 128),
        ):
            x = normal(generator, tokens, columns, dtype=dtype, scale=3.0)
            yield x.index_fill_(0, torch.arange(tokens)[2:3].to(x.device), 0.0), kind, group


def _coded(x: Tensor, kind: str, group: int) -> tuple[Tensor, Tensor]:
    groups = -(-x.shape[-1] // group)
    return x.new_empty(x.shape, dtype=KINDS[kind][1]), x.new_empty((*x.shape[:-1], groups), dtype=torch.float32)


def _rows_cost(x: Tensor, kind: str, group: int) -> Cost:
    return Cost(
        3 * x.numel(), nbytes(x) + x.numel() + 4 * (x.numel() // max(1, x.shape[-1])) * -(-x.shape[-1] // group)
    )


@op(inputs=_rows_inputs, tolerances=EXACT, fake=_coded, rows=("x",), cost=_rows_cost)
def quantize_rows(x: Tensor, kind: str, group: int) -> tuple[Tensor, Tensor]:
    """Each row's values as codes of 8 bits, with a scale for each ``group`` of columns: its largest magnitude by the largest code.

    x ``[T, K]`` → codes ``[T, K]`` int8 or float8_e4m3fn (``kind`` ``"int8"``, ``"fp8"``), scale ``[T, ⌈K/group⌉]`` fp32.
    Halves are rounded to even. A group of zeros has scale 0; what is not finite makes its group's scale NaN.
    """
    largest, dtype = KINDS[kind]
    wide, columns = x.float(), x.shape[-1]
    padded = torch.nn.functional.pad(wide, (0, -columns % group)).reshape(x.shape[0], -(-columns // group), group)
    scale = padded.abs().amax(-1) / largest
    scale = torch.where(scale.isfinite(), scale, torch.nan)
    divisor = torch.where(scale > 0, scale, 1.0)
    return codes_of(wide, spread(divisor, (1, group), x.shape[0], columns), dtype), scale


def codes_of(wide: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """``wide / scale`` in a code's dtype, the nearest there is."""
    codes = torch.nan_to_num(wide / scale)
    if dtype is torch.int8:
        return codes.round_().clamp_(-127, 127).to(dtype)
    return codes.clamp_(-448, 448).to(dtype)


def _static_inputs(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    for kind in KINDS:
        for tokens, columns in ((1, 16), (5, 33), (0, 8), (17, 4096)):
            scale = torch.full((1, 1), 2.5 / KINDS[kind][0], device=generator.device)
            yield normal(generator, tokens, columns, dtype=dtype), scale, kind


def _coded_with(x: Tensor, scale: Tensor, kind: str) -> Tensor:
    return x.new_empty(x.shape, dtype=KINDS[kind][1])


def _static_cost(x: Tensor, scale: Tensor, kind: str) -> Cost:
    return Cost(2 * x.numel(), nbytes(x, scale) + x.numel())


@op(inputs=_static_inputs, tolerances=EXACT, fake=_coded_with, constants=("scale",), rows=("x",), cost=_static_cost)
def quantize_with(x: Tensor, scale: Tensor, kind: str) -> Tensor:
    """Values as codes of 8 bits with a scale known before: x ``[T, K]``, scale ``[1, 1]`` fp32 → ``[T, K]``; larger ones saturate."""
    return codes_of(x.float(), scale.float(), KINDS[kind][1])


def _scaled_inputs(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    name = str(dtype).removeprefix("torch.")
    cases = (
        (1, 8, 16, 16, (1, 16), "int8"),
        (5, 33, 48, 48, (1, 48), "int8"),
        (17, 16, 31, 31, (1, 31), "int8"),
        (3, 9, 40, 16, (4, 16), "fp8"),
        (4, 16, 32, 32, (16, 32), "fp8"),
        (0, 8, 8, 8, (1, 8), "int8"),
        (3, 256, 4096, 4096, (1, 4096), "int8"),
        (3, 256, 4096, 128, (128, 128), "fp8"),
    )
    for tokens, rows, columns, group, block, kind in cases:
        x, x_scale = quantize_rows.reference(normal(generator, tokens, columns, dtype=dtype), kind, group)
        if kind == "int8":
            weight = (integers(generator, 255, rows, columns) - 127).to(torch.int8)
        else:
            weight = normal(generator, rows, columns, dtype=torch.float32, scale=64.0).to(torch.float8_e4m3fn)
        blocks = (-(-rows // block[0]), -(-columns // block[1]))
        scale = (normal(generator, *blocks, dtype=torch.float32).abs() + 0.5) / (64 * columns**0.5)
        if tokens == 4:
            x_scale = x_scale[:1, :1]
        bias = normal(generator, rows, dtype=dtype) if tokens % 2 else None
        yield x, x_scale, weight, scale, group, block, name, bias


def _scaled(
    x: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, group: int, block: Block, dtype: str,
    bias: Tensor | None = None,
) -> Tensor:  # fmt: skip
    return x_scale.new_empty((*x.shape[:-1], weight.shape[0]), dtype=getattr(torch, dtype))


def _scaled_cost(
    x: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, group: int, block: Block, dtype: str,
    bias: Tensor | None = None,
) -> Cost:  # fmt: skip
    made = x.shape[0] * weight.shape[0]
    flops = 2 * made * x.shape[-1] + 2 * made + (0 if bias is None else made)
    return Cost(flops, nbytes(x, x_scale, weight, scale, bias) + made * getattr(torch, dtype).itemsize)


def _scaled_rows(args: tuple[Any, ...], rows: Sequence[int]) -> tuple[Any, ...]:
    x, x_scale, *rest = args
    chosen = torch.tensor(list(rows), dtype=torch.int64, device=x.device)
    return x[chosen], x_scale if len(x_scale) < len(x) else x_scale[chosen], *rest


@op(
    inputs=_scaled_inputs,
    tolerances={**PRODUCT, "float32": Tolerance(1e-4, 2e-5)},
    fake=_scaled,
    constants=("weight", "scale", "bias"),
    rows=_scaled_rows,
    cost=_scaled_cost,
)
def scaled_linear(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    scale: Tensor,
    group: int,
    block: Block,
    dtype: str,
    bias: Tensor | None = None,
) -> Tensor:
    """``(x · x_scale) · (weight · scale)ᵀ + bias`` of codes of 8 bits, rounded once: → ``[T, N]`` in ``dtype``.

    x ``[T, K]``, x_scale ``[T, ⌈K/group⌉]`` fp32 or ``[1, 1]`` for all, weight ``[N, K]`` of x's dtype, scale
    ``[⌈N/block[0]⌉, ⌈K/block[1]⌉]`` fp32, bias ``[N]``.
    """
    left = x.double() * spread(x_scale.double(), (1, group), x.shape[0], x.shape[-1])
    right = weight.double() * spread(scale.double(), block, *weight.shape)
    made = left @ right.t()
    return (made if bias is None else made + bias.double()).to(getattr(torch, dtype))
