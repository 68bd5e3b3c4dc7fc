"""Round to nearest onto integer grids. N output features · K input features · G groups of input features.

A group of a row has a scale, and a zero where the grid has one. Scales and zeros are rounded to the dtype they are stored in
before codes are chosen, so that a code is the nearest to its weight in the file's own arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Zeros = Literal["none", "integer", "minimum"]

_SHRINK = tuple(1 - step / 40 for step in range(21))  # of a group's range: the whole of it, down to one half


class Grid(NamedTuple):
    """Which values a weight can take.

    Args:
        bits: 4 or 8.
        group: input features that share a scale, the last group of a row may be shorter; None: the whole row.
        zeros: ``none``: w = scale · code; ``integer``: w = scale · (code − zero), the zero one of the codes; ``minimum``:
            w = scale · code + zero, the zero in the scale's dtype.
        dtype: of scales.
    """

    bits: Literal[4, 8]
    group: int | None
    zeros: Zeros = "none"
    dtype: torch.dtype = torch.float16

    @property
    def codes(self) -> tuple[int, int]:
        """The smallest and the largest code."""
        if self.zeros != "none":
            return 0, 2**self.bits - 1
        return (-8, 7) if self.bits == 4 else (-127, 127)

    def width(self, columns: int) -> int:
        """Features of a group in a row of so many."""
        return columns if self.group is None else min(self.group, columns)


class Codes(NamedTuple):
    """A quantized weight before packing.

    Args:
        codes: ``[N, K]``: int8 without zeros (4 bits: −8…7; 8 bits: −127…127), else uint8 (from 0).
        scale: ``[N, G]`` in the grid's dtype. Of a symmetric 4-bit grid it has the sign that gives −8 to the largest weight.
        zero: ``[N, G]``, uint8 (``integer``) or in the scale's dtype (``minimum``); None without zeros.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None


class Ranges(NamedTuple):
    """Scale and zero of each group in fp32, as they will be stored; ``[N, G]`` each, or of one group ``[N]``."""

    scale: Tensor
    zero: Tensor | None


def values(codes: Codes, group: int | None) -> Tensor:
    """What the codes stand for, ``[N, K]`` fp32."""
    columns = codes.codes.shape[-1]
    width = columns if group is None else min(group, columns)

    def spread(stored: Tensor) -> Tensor:
        return stored.float().repeat_interleave(width, -1)[..., :columns]

    if codes.zero is None:
        return codes.codes.float() * spread(codes.scale)
    if codes.zero.dtype == torch.uint8:
        return (codes.codes.float() - spread(codes.zero)) * spread(codes.scale)
    return codes.codes.float() * spread(codes.scale) + spread(codes.zero)


def round_to_nearest(weight: Tensor, grid: Grid, shrink: Tensor | None = None) -> Codes:
    """Each weight at the nearest value of its group.

    Args:
        weight: ``[N, K]``, finite.
        shrink: ``[N, G]``, what is left of each group's range; weights beyond it get its end. None: all of it.
    """
    pieces = grouped(weight.float(), grid.width(weight.shape[1]))
    found = ranges(pieces, grid, shrink)
    zero = None if found.zero is None else found.zero.unsqueeze(-1)
    codes = encode(pieces, Ranges(found.scale.unsqueeze(-1), zero), grid).flatten(1)[:, : weight.shape[1]]
    return stored(codes.contiguous(), found, grid)


def clipped(weight: Tensor, grid: Grid, error: Callable[[Tensor], Tensor] | None = None) -> Codes:
    """Round to nearest with each group's range shrunk by the factor, of 1 … ½, that gives the smallest error.

    Args:
        weight: ``[N, K]``, finite.
        error: from the quantized weight's difference ``[N, K]`` to an error of each group ``[N, G]``; None: the sum of its
            squares.
    """
    width = grid.width(weight.shape[1])
    measure = error or (lambda difference: grouped(difference, width, fill=0.0).square().sum(-1))
    smallest = chosen = None
    for part in _SHRINK:
        shape = (weight.shape[0], -(-weight.shape[1] // width))
        shrink = weight.new_full(shape, part, dtype=torch.float32)
        found = measure(values(round_to_nearest(weight, grid, shrink), grid.group) - weight.float())
        if smallest is None or chosen is None:
            smallest, chosen = found, shrink
        else:
            better = found < smallest
            smallest, chosen = torch.where(better, found, smallest), torch.where(better, shrink, chosen)
    return round_to_nearest(weight, grid, chosen)


def grouped(x: Tensor, width: int, fill: float | None = None) -> Tensor:
    """``[N, K]`` → ``[N, G, width]``; a shorter last group is filled up, unless said with its last element."""
    rest = -x.shape[1] % width
    if rest:
        more = x[:, -1:].expand(-1, rest) if fill is None else x.new_full((x.shape[0], rest), fill)
        x = torch.cat((x, more), 1)
    return x.reshape(x.shape[0], -1, width)


def ranges(pieces: Tensor, grid: Grid, shrink: Tensor | None = None) -> Ranges:
    """Scale and zero of groups ``[…, width]`` fp32 that lets their ends, shrunk, be values: ``[…]`` each.

    Where a scale would be 0 (a group of zeros, or of numbers that its dtype can't tell from them) it is 1, and all codes are
    those of zero (``minimum``: of the minimum).
    """
    low, high = pieces.amin(-1), pieces.amax(-1)
    if grid.zeros == "none":
        end = torch.where(high > -low, high, low)  # the largest in magnitude
        if shrink is not None:
            end = end * shrink
        # A sign costs nothing, and of −8 … 7 the larger half then always lies where the largest weight does.
        return Ranges(_rounded(end / -8 if grid.bits == 4 else end.abs() / 127, grid), None)
    if grid.zeros == "integer":
        low, high = low.clamp(max=0), high.clamp(min=0)  # zero is one of the codes
    if shrink is not None:
        middle = (low + high) / 2 if grid.zeros == "minimum" else torch.zeros_like(low)
        low, high = middle + (low - middle) * shrink, middle + (high - middle) * shrink
    top = grid.codes[1]
    scale = _rounded((high - low) / top, grid)
    if grid.zeros == "integer":
        return Ranges(scale, (-low / scale).round().clamp(0, top))
    return Ranges(scale, _saturated(low, grid.dtype).float())


def encode(x: Tensor, found: Ranges, grid: Grid) -> Tensor:
    """The codes nearest to x, as fp32; scale and zero are broadcast."""
    if found.zero is None:
        steps = x / found.scale
    elif grid.zeros == "integer":
        # Rounded first: the zero is whole, so this is the nearest code.
        steps = (x / found.scale).round() + found.zero
    else:
        steps = (x - found.zero) / found.scale
    return steps.round().clamp(*grid.codes)


def decode(codes: Tensor, found: Ranges, grid: Grid) -> Tensor:
    """What codes stand for, fp32; scale and zero are broadcast."""
    if found.zero is None:
        return codes * found.scale
    if grid.zeros == "integer":
        return (codes - found.zero) * found.scale
    return codes * found.scale + found.zero


def stored(codes: Tensor, found: Ranges, grid: Grid) -> Codes:
    """Codes ``[N, K]`` and ranges ``[N, G]`` in the dtypes of :class:`Codes`."""
    symmetric = found.zero is None
    zero = None if found.zero is None else found.zero.to(torch.uint8 if grid.zeros == "integer" else grid.dtype)
    return Codes(codes.to(torch.int8 if symmetric else torch.uint8), found.scale.to(grid.dtype), zero)


def output_error(x: Tensor, width: int) -> Callable[[Tensor], Tensor]:
    """An error for :func:`clipped`: of each group's part of the product with x ``[R, K]``, the mean square over rows."""
    columns = grouped(x.float(), width, fill=0.0).transpose(0, 1)  # [G, R, width]
    gram = columns.transpose(1, 2) @ columns / max(1, x.shape[0])

    def error(difference: Tensor) -> Tensor:
        pieces = grouped(difference, width, fill=0.0).transpose(0, 1)  # [G, N, width]
        return ((pieces @ gram) * pieces).sum(-1).t()

    return error


def _rounded(scale: Tensor, grid: Grid) -> Tensor:
    kept = _saturated(scale, grid.dtype).float()
    return torch.where(kept == 0, torch.ones_like(kept), kept)


def _saturated(x: Tensor, dtype: torch.dtype) -> Tensor:
    end = torch.finfo(dtype).max
    return x.clamp(-end, end).to(dtype)
