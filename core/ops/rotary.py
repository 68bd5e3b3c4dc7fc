"""Rotary position embedding (Su et al. 2021). T tokens · H heads · D head size · R rotated part of D."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bestiary.core.config import Rope
from bestiary.core.ops.cost import Cost, nbytes
from bestiary.core.ops.declare import Tolerance, integers, like_first, normal, op
from bestiary.core.ops.frequencies import dynamic_frequencies, rope_frequencies, rope_scale

_ANGLES = {"float32": Tolerance(1e-5, 1e-5)}


def _table_inputs(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    kinds = (
        Rope(kind="default", theta=10000.0),
        Rope(kind="linear", theta=10000.0, factor=2.0),
        Rope(kind="dynamic", theta=10000.0, factor=2.0, original_max_position=16),
        Rope(
            kind="llama3",
            theta=500000.0,
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position=64,
        ),
        Rope(kind="yarn", theta=10000.0, factor=4.0, original_max_position=32),
    )
    for rope in kinds:
        for tokens, size in ((9, 16), (300, 128)):
            positions = integers(generator, 100, tokens)
            yield positions, positions + 1, rope, size


def _table(positions: Tensor, lengths: Tensor, rope: Rope, size: int) -> Tensor:
    return positions.new_empty(positions.shape[0], size, dtype=torch.float32)


def _table_cost(positions: Tensor, lengths: Tensor, rope: Rope, size: int) -> Cost:
    values = positions.numel() * size  # half of them cosines, half sines, of a product each
    return Cost(2 * values, nbytes(positions) + values * torch.float32.itemsize)


@op(inputs=_table_inputs, tolerances=_ANGLES, fake=_table, rows=("positions", "lengths"), cost=_table_cost)
def rotary_table(positions: Tensor, lengths: Tensor, rope: Rope, size: int) -> Tensor:
    """Cosines and sines of every token's angles, once a step for all layers that share them.

    ``angle = position · frequency``; the frequencies follow from ``rope`` (default, linear, dynamic, llama3, yarn), the
    dynamic kind's from each token's own ``length``: the length of its context when it was first computed.

    positions, lengths ``[T]`` int64; ``size`` = R, the rotated features → ``[T, R]`` fp32: R/2 cosines, then R/2 sines.
    """
    if rope.kind == "dynamic":
        frequencies = dynamic_frequencies(rope, size, lengths)
    else:
        frequencies = rope_frequencies(rope, size, positions.device)
    angles = positions.unsqueeze(-1).float() * frequencies
    return torch.cat((angles.cos(), angles.sin()), -1) * rope_scale(rope)


def _rope_inputs(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    for tokens, heads, size, rotated in ((1, 1, 8, 8), (5, 3, 16, 16), (4, 2, 16, 8), (17, 32, 128, 128)):
        angles = normal(generator, tokens, rotated // 2, dtype=torch.float32)
        table = torch.cat((angles.cos(), angles.sin()), -1)
        packed = normal(generator, tokens, (heads + 1) * size, dtype=dtype)
        yield packed[:, : heads * size].view(tokens, heads, size), table


def rotation_cost(x: Tensor, table: Tensor) -> Cost:
    """Two products and a sum for each rotated feature."""
    return Cost(3 * x.shape[0] * x.shape[1] * table.shape[-1], nbytes(x, table, x))


@op(inputs=_rope_inputs, fake=like_first, rows=("x", "table"), cost=rotation_cost)
def rope(x: Tensor, table: Tensor) -> Tensor:
    """Rotate the pairs ``(x[i], x[i + R/2])`` of each head by the token's angles, in fp32.

    x ``[T, H, D]``, table ``[T, R]`` from :func:`rotary_table` → ``[T, H, D]``; features beyond R stay as they are.
    """
    rotated = table.shape[-1]
    cosine, sine = table.unsqueeze(1).chunk(2, -1)
    first, second = x[..., :rotated].float().chunk(2, -1)
    turned = torch.cat((first * cosine - second * sine, second * cosine + first * sine), -1).to(x.dtype)
    return torch.cat((turned, x[..., rotated:]), -1) if rotated < x.shape[-1] else turned
