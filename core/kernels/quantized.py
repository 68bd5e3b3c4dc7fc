"""Quantized weights through torch's functions: restored a part at a time, then the plain kernels. Arguments as in the ops."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bestiary.core.kernels import dense, invariant, moe
from bestiary.core.ops.activation import ACTIVATIONS
from bestiary.core.ops.quantized import Block, spread
from bestiary.core.ops.quantized import dequantize as dequantized
from bestiary.core.ops.quantized_rows import KINDS, codes_of

#: Rows that are restored at a time: they stay in a processor's cache.
RESTORED_ROWS = 512


def dequantize(
    codes: Tensor, scale: Tensor, zero: Tensor | None, block: Block, columns: int, dtype: str, *, out: Tensor
) -> None:
    out.copy_(dequantized.reference(codes, scale, zero, block, columns, dtype))


def quantized_linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    block: Block,
    columns: int,
    dtype: str,
    bias: Tensor | None = None,
    *,
    out: Tensor,
) -> None:
    for rows, weight in _parts(codes, scale, zero, block, columns, dtype, x.device):
        out[:, rows] = torch.nn.functional.linear(x, weight, None if bias is None else bias[rows])


def quantized_logits(
    x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, block: Block, columns: int, dtype: str, *, out: Tensor
) -> None:
    for rows, weight in _parts(codes, scale, zero, block, columns, dtype, x.device):
        made = out.new_empty(x.shape[0], weight.shape[0])
        dense.logits(x, weight, out=made)
        out[:, rows] = made


def quantized_embedding(
    ids: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    block: Block,
    columns: int,
    dtype: str,
    *,
    out: Tensor,
) -> None:
    """The rows alone are restored."""
    rows = codes.view(torch.uint8).index_select(0, ids).view(codes.dtype)
    blocks = ids if block[0] == 1 else ids // block[0]
    zeros = None if zero is None else zero.index_select(0, blocks)
    scales = scale.index_select(0, blocks)
    out.copy_(dequantized.reference(rows, scales, zeros, (1, block[1]), columns, dtype))


def invariant_linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    block: Block,
    columns: int,
    dtype: str,
    bias: Tensor | None = None,
    *,
    out: Tensor,
) -> None:
    """The weight restored, then tiles of rows as in :mod:`~bestiary.core.kernels.invariant`."""
    for rows, weight in _parts(codes, scale, zero, block, columns, dtype, x.device):
        invariant.linear(x, weight, None if bias is None else bias[rows], out=out[:, rows])


def invariant_logits(
    x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, block: Block, columns: int, dtype: str, *, out: Tensor
) -> None:
    for rows, weight in _parts(codes, scale, zero, block, columns, dtype, x.device):
        invariant.logits(x, weight, out=out[:, rows])


def _parts(
    codes: Tensor, scale: Tensor, zero: Tensor | None, block: Block, columns: int, dtype: str, device: torch.device
) -> Iterator[tuple[slice, Tensor]]:
    """The weight's rows, restored; on a processor some at a time."""
    size = codes.shape[0] if device.type != "cpu" else max(1, RESTORED_ROWS // block[0]) * block[0]
    for start in range(0, codes.shape[0], size):
        rows, blocks = slice(start, start + size), slice(start // block[0], -(-(start + size) // block[0]))
        some = None if zero is None else zero[blocks]
        yield rows, dequantized.reference(codes[rows], scale[blocks], some, block, columns, dtype)


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
    *,
    out: Tensor,
) -> None:
    """Each expert's weights are restored where some token goes through it."""
    gates = _Experts((gate, gate_scale, gate_zero), gate_block, hidden, dtype)
    ups = _Experts((up, up_scale, up_zero), up_block, hidden, dtype)
    downs = _Experts((down, down_scale, down_zero), down_block, features, dtype)
    moe.each_expert(x, weights, experts, gates, ups, downs, ACTIVATIONS[kind], moe.product, out)


class _Experts(Sequence[Tensor]):
    """A quantized weight by expert, each restored when it is asked for."""

    def __init__(self, stored: tuple[Tensor, Tensor, Tensor | None], block: Block, columns: int, dtype: str) -> None:
        self._stored, self._form = stored, (block, columns, dtype)

    def __len__(self) -> int:
        return len(self._stored[0])

    def __getitem__(self, expert: Any) -> Any:
        codes, scale, zero = (None if one is None else one[expert] for one in self._stored)
        assert codes is not None and scale is not None
        return dequantized.reference(codes, scale, zero, *self._form)


def quantize_rows(x: Tensor, kind: str, group: int, *, out: tuple[Tensor, Tensor]) -> None:
    codes, scale = out
    largest, dtype = KINDS[kind]
    wide = x.float()
    if x.shape[-1] % group:
        wide = torch.nn.functional.pad(wide, (0, -x.shape[-1] % group))
    grouped = wide.reshape(x.shape[0], -(-x.shape[-1] // group), group)
    torch.div(grouped.abs().amax(-1), largest, out=scale)
    scale.masked_fill_(~scale.isfinite(), torch.nan)
    divisor = torch.where(scale > 0, scale, 1.0).unsqueeze(-1)
    codes.copy_(codes_of(grouped, divisor, dtype).flatten(-2)[..., : x.shape[-1]])


def quantize_with(x: Tensor, scale: Tensor, kind: str, *, out: Tensor) -> None:
    out.copy_(codes_of(x.float(), scale, KINDS[kind][1]))


def scaled_linear(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    scale: Tensor,
    group: int,
    block: Block,
    dtype: str,
    bias: Tensor | None = None,
    *,
    out: Tensor,
) -> None:
    """In fp32: codes of 8 bits are exact in it."""
    left = x.float() * spread(x_scale, (1, group), *x.shape)
    right = weight.float() * spread(scale, block, *weight.shape)
    out.copy_(torch.nn.functional.linear(left, right, None if bias is None else bias.float()))


def scaled_linear_int8(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    scale: Tensor,
    group: int,
    block: Block,
    dtype: str,
    bias: Tensor | None = None,
    *,
    out: Tensor,
) -> None:
    """Exact sums of products of integers, scaled once; a row's result depends on that row alone."""
    made = torch._int_mm(x, weight.t()).float().mul_(x_scale).mul_(scale.t())
    out.copy_(made if bias is None else made.add_(bias.float()))
