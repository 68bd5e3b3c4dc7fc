"""Batch-invariant kernels: a row's result is the same to the bit whatever rows surround it. Arguments as in the ops.

Libraries choose how a product or a sum is ordered by its shape, so every product here has one shape: a tile of so many
rows, padded, one call a tile. A row's place in its tile decides nothing. Sums over features are products with ones. All
else is composed of functions that torch computes alike at every place of a tensor; its silu, gelu and pow are not, since
the ends of vectors take another way than their middle.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from bestiary.core.config import Rope
from bestiary.core.kernels.dense import WIDENED_ROWS
from bestiary.core.ops.frequencies import rope_frequencies, rope_scale

#: Features are padded with zeros to a multiple of this. Libraries have ways of their own for small odd sizes, where a row's
#: place in its tile does matter; and each operand begins at a multiple of 64 bytes.
PADDING = 16


def tile_rows(device: torch.device) -> int:
    """Rows of a product. A processor pays for every padded row of a decode, other devices for every further call."""
    return 8 if device.type == "cpu" else 64


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, out: Tensor) -> None:
    _product(x, weight, bias, out, wide=False)


def linear_widened(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, out: Tensor) -> None:
    """In fp32, as ``dense.linear_widened``: for processors without 16-bit products."""
    _product(x, weight, bias, out, wide=True)


def logits(x: Tensor, weight: Tensor, *, out: Tensor) -> None:
    _product(x, weight, None, out, wide=True)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, *, wide: bool) -> None:
    """``out = x · weightᵀ + bias``; ``wide``: in fp32, a part of the weight at a time, so that its copy stays in the cache."""
    dtype = torch.float32 if wide else x.dtype
    for start in range(0, weight.shape[0], WIDENED_ROWS if wide else weight.shape[0]):
        part = slice(start, start + WIDENED_ROWS) if wide else slice(None)
        right = weight[part].to(dtype)
        count, features = right.shape
        if features % PADDING or count < PADDING:
            right = F.pad(right, (0, padded(features) - features, 0, max(0, PADDING - count)))
        _tiled(x, right.t(), None if bias is None else bias[part].to(dtype), out[:, part])


def _tiled(x: Tensor, right: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """``out = x · right + bias`` in products of ``tile_rows`` rows: x ``[T, K]``, right ``[K or more, N or more]``, out ``[T, N]``."""
    rows = tile_rows(x.device)
    # Operands have memory of their own: at another address a library may take another way.
    left, product = right.new_zeros(rows, right.shape[0]), right.new_empty(rows, right.shape[1])
    for start in range(0, x.shape[0], rows):
        some = x[start : start + rows]
        left[: some.shape[0], : x.shape[1]] = some
        torch.mm(left, right, out=product)
        made = product[: some.shape[0], : out.shape[1]]
        out[start : start + rows] = made if bias is None else made + bias


def padded(size: int) -> int:
    """The next multiple of ``PADDING``."""
    return -(-size // PADDING) * PADDING


def row_sums(x: Tensor) -> Tensor:
    """The sums over the last axis as a product with ones: x ``[T, K]`` fp32 → ``[T, 1]``."""
    sums = x.new_empty(x.shape[0], 1)
    _tiled(x, x.new_ones(padded(x.shape[1]), 1), None, sums)
    return sums


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, out: Tensor) -> None:
    wide = x.float()
    features = x.shape[-1]
    scale = row_sums(wide.square().view(-1, features)).div_(features).add_(eps).rsqrt_().view(*x.shape[:-1], 1)
    out.copy_((wide * scale).mul_(weight))


def add_rms_norm(x: Tensor, y: Tensor, weight: Tensor, eps: float, *, out: tuple[Tensor, Tensor]) -> None:
    normed, total = out
    torch.add(x, y, out=total)
    rms_norm(total, weight, eps, out=normed)


def gated_activation(gate: Tensor, up: Tensor, kind: str, *, out: Tensor) -> None:
    out.copy_(ACTIVATIONS[kind](gate.float()).mul_(up))


def rotary_table(positions: Tensor, lengths: Tensor, rope: Rope, size: int, *, out: Tensor) -> None:
    if rope.kind == "dynamic":
        frequencies = _dynamic_frequencies(rope, size, lengths)
    else:
        frequencies = rope_frequencies(rope, size, positions.device)
    angles = positions.unsqueeze(-1).float() * frequencies
    torch.mul(torch.cat((angles.cos(), angles.sin()), -1), rope_scale(rope), out=out)


def _dynamic_frequencies(rope: Rope, size: int, lengths: Tensor) -> Tensor:
    """``dynamic_frequencies`` with its powers as exponentials of logarithms, in fp64."""
    original = float(rope.original_max_position or 1)
    grown = lengths.clamp(min=int(original)).double()
    growth = (rope.factor * grown / original - (rope.factor - 1)).log() * (size / (size - 2))
    exponents = torch.arange(0, size, 2, device=lengths.device).double() / size
    return ((growth + math.log(rope.theta)).unsqueeze(-1) * -exponents).exp().float()


def sigmoid_gate(x: Tensor, gate: Tensor, *, out: Tensor) -> None:
    out.copy_(sigmoid(gate.float()).mul(x))


def sigmoid(x: Tensor) -> Tensor:
    """``1 / (1 + e^−x)``."""
    return (-x).exp_().add_(1).reciprocal_()


def _silu(x: Tensor) -> Tensor:
    return x / (-x).exp_().add_(1)


def _relu(x: Tensor) -> Tensor:
    return x.clamp(min=0)


def _gelu(x: Tensor) -> Tensor:
    return (x * math.sqrt(0.5)).erf_().add_(1).mul_(x).mul_(0.5)


def _gelu_tanh(x: Tensor) -> Tensor:
    inner = (x * x).mul_(x).mul_(0.044715).add_(x).mul_(math.sqrt(2 / math.pi))
    return inner.tanh_().add_(1).mul_(x).mul_(0.5)


#: As ``ops.activation.ACTIVATIONS``.
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": _silu,
    "relu": _relu,
    "gelu": _gelu,
    "gelu_pytorch_tanh": _gelu_tanh,
}
