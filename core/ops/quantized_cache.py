"""Attention over a paged key-value cache of few bits: the ops of :mod:`~bestiary.core.ops.attention` on blocks of bytes.

T packed tokens · N sequences · H query heads · K key-value heads · D key size · E value size · B blocks · S block size ·
P blocks a sequence can have. How bytes lie in a block, and what numbers they stand for, is
:mod:`~bestiary.core.ops.kv_blocks`'. As there, a cache's last block belongs to nobody.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bestiary.core.kv_format import KINDS, SCALE_BYTES, BlockFormat
from bestiary.core.ops.attention import (
    SOFTMAX,
    attention_case,
    attention_cost,
    decoded,
    nothing,
    paged_attention,
)
from bestiary.core.ops.cost import Cost, nbytes
from bestiary.core.ops.declare import EXACT, like_first, normal, op
from bestiary.core.ops.kv_blocks import blocks_of, codes_of, numbers_of, quantize, scales_of
from bestiary.core.ops.rotary import rope, rotation_cost

_PAGED = 8  # arguments that ``paged_attention`` has too
#: Tokens, heads, key size, value size, fixed scales, block size of the test cases; the last are as a model's.
_WRITES = ((1, 1, 8, 8, False, 4), (6, 2, 16, 7, False, 4), (5, 3, 9, 10, True, 4), (70, 8, 128, 128, False, 16))


def _write_inputs(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    device = generator.device
    for kind in KINDS:
        for tokens, heads, size, value_size, fixed, block_size in _WRITES:
            k = normal(generator, tokens, heads, size, dtype=dtype, scale=3.0)
            v = normal(generator, tokens, heads, value_size, dtype=dtype)
            v[:, 0] = 0.0  # a head of zeros has no scale
            blocks = -(-tokens // block_size) + 2
            caches = [
                torch.randint(256, (blocks, form.nbytes), generator=generator, device=device, dtype=torch.uint8)
                for form in (BlockFormat(kind, block_size, heads, n) for n in (size, value_size))
            ]
            slots = torch.randperm((blocks - 1) * block_size, generator=generator, device=device)[:tokens]
            slots[tokens - 1 :] = -1 if tokens > 1 else 3
            scales = [torch.rand(heads, generator=generator, device=device) / 50 if fixed else None for _ in "kv"]
            yield k, v, *caches, slots, kind, block_size, *scales


def _write_cost(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    kind: str,
    block_size: int,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> Cost:
    """Two operations a number: the largest of a head, and the division."""
    written = sum(x.shape[0] * _stored(kind, x.shape[1], x.shape[2]) for x in (k, v))
    return Cost(2 * (k.numel() + v.numel()), nbytes(k, v, slots, k_scale, v_scale) + written)


def _stored(kind: str, heads: int, size: int) -> int:
    """Bytes of one token's keys, or values."""
    return heads * (BlockFormat(kind, 1, heads, size).code_bytes + SCALE_BYTES)


@op(
    inputs=_write_inputs,
    tolerances=EXACT,
    mutates=("k_cache", "v_cache"),
    fake=nothing,
    constants=("k_scale", "v_scale"),
    rows=("k", "v", "slots"),
    cost=_write_cost,
)
def quantized_kv_write(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    kind: str,
    block_size: int,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> None:
    """Put codes and scales of each token's key and value into its slot (block · S + offset; −1 for padding).

    Each head is rounded by itself, ``code = round(x / scale)``, so that what a token leaves depends on nothing but itself; a
    head with a value that is not finite is NaN when it is read.

    k ``[T, K, D]``, v ``[T, K, E]``, k_cache, v_cache ``[B, bytes]`` uint8, slots ``[T]`` int64; ``kind`` is one of
    ``int8``, ``fp8``, ``int4``, ``block_size`` S; k_scale, v_scale ``[K]`` are each head's scale, None where its values give it.
    """
    for x, cache, fixed in ((k, k_cache, k_scale), (v, v_cache, v_scale)):
        form = BlockFormat(kind, block_size, *x.shape[1:])
        codes, scales = quantize(x, kind, fixed)
        places = slots // block_size, slots % block_size
        codes_of(cache, form)[places] = codes
        scales_of(cache, form)[places] = scales


def _rope_write_inputs(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    for k, v, *others in _write_inputs(generator, dtype):
        angles = normal(generator, k.shape[0], k.shape[-1] // 2, dtype=torch.float32)
        table = torch.cat((angles.cos(), angles.sin()), -1)
        q = normal(generator, k.shape[0], 2 * k.shape[1], k.shape[2], dtype=dtype)
        yield q, k, v, table, *others


def _rope_write_cost(q: Tensor, k: Tensor, v: Tensor, table: Tensor, *others: Any) -> Cost:
    keys = Cost(rotation_cost(k, table).flops, 0)  # turned on their way into the cache
    return rotation_cost(q, table) + keys + _write_cost(k, v, *others)


@op(
    inputs=_rope_write_inputs,
    mutates=("k_cache", "v_cache"),
    fake=like_first,
    constants=("k_scale", "v_scale"),
    rows=("q", "k", "v", "table", "slots"),
    cost=_rope_write_cost,
)
def rope_quantized_kv_write(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    kind: str,
    block_size: int,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> Tensor:
    """Rotate queries and keys, round keys and values into their slots, return the queries ``[T, H, D]``.

    Keys are rounded to their dtype before they are quantized; arguments as those of ``rope`` and ``quantized_kv_write``.
    """
    turned = rope(q, table)
    quantized_kv_write(rope(k, table), v, k_cache, v_cache, slots, kind, block_size, k_scale, v_scale)
    return turned


def _attention_inputs(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    decodes, mixed, padded = ((1, 9), (1, 3), (1, 16)), ((5, 5), (3, 11), (1, 7)), ((1, 4), (0, 0), (3, 3))
    # As models are: several tiles of keys and of queries, a window that ends within a tile.
    many = ((1, 200), (40, 70), (1, 17))
    for kind in KINDS:
        for batch, sizes, block_size in (
            (decodes, (6, 2, 16, 16, 5), 4),
            (mixed, (4, 1, 16, 8, None), 4),
            (padded, (2, 2, 9, 7, 3), 4),
            (many, (4, 1, 128, 128, 100), 32),
        ):
            q, k_cache, v_cache, *others = attention_case(generator, dtype, batch, sizes, block_size)
            caches = [blocks_of(cache, kind) for cache in (k_cache, v_cache)]
            yield q, *caches, *others, kind, *k_cache.shape[1:3], v_cache.shape[3]


def _decoded(args: tuple[Any, ...], rows: Sequence[int]) -> tuple[Any, ...]:
    return *decoded(args[:_PAGED], rows), *args[_PAGED:]


def _attention_shape(q: Tensor, *others: Any) -> Tensor:
    return q.new_empty(*q.shape[:-1], others[-1])


def _attention_cost(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    query_starts: Tensor,
    kv_lengths: Tensor,
    scale: float,
    window: int | None,
    kind: str,
    block_size: int,
    kv_heads: int,
    value_size: int,
) -> Cost:
    cached = sum(_stored(kind, kv_heads, size) for size in (q.shape[2], value_size))
    return attention_cost(q, block_tables, query_starts, kv_lengths, window, block_size, value_size, cached)


@op(inputs=_attention_inputs, tolerances=SOFTMAX, fake=_attention_shape, rows=_decoded, cost=_attention_cost)
def quantized_paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    query_starts: Tensor,
    kv_lengths: Tensor,
    scale: float,
    window: int | None,
    kind: str,
    block_size: int,
    kv_heads: int,
    value_size: int,
) -> Tensor:
    """``paged_attention`` over what the codes and scales of a cache stand for, in fp32.

    q ``[T, H, D]``, k_cache, v_cache ``[B, bytes]`` uint8 → ``[T, H, E]`` in q's dtype. ``kind`` and ``block_size`` are those
    that ``quantized_kv_write`` was given, ``kv_heads`` K and ``value_size`` E; the others as for ``paged_attention``.
    """
    used, tables = torch.unique(block_tables, return_inverse=True)
    keys, values = (
        numbers_of(cache[used.long()], BlockFormat(kind, block_size, kv_heads, size))
        for cache, size in ((k_cache, q.shape[-1]), (v_cache, value_size))
    )
    return paged_attention.reference(q, keys, values, tables.int(), query_starts, kv_lengths, scale, window)
