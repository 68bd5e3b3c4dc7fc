"""Attention over a cache of few bits: what a step's tables name is dequantized, and goes through the ordinary kernels.

T tokens · N sequences · H, K heads · D, E sizes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bestiary.core.kernels import attention
from bestiary.core.kernels.pages import Quantized
from bestiary.core.kv_format import BlockFormat
from bestiary.core.ops.kv_blocks import codes_of, quantize, scales_of


def quantized_kv_write(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    kind: str,
    block_size: int,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
) -> None:
    places = slots.div(block_size, rounding_mode="floor"), slots.remainder(block_size)
    for x, cache, fixed in ((k, k_cache, k_scale), (v, v_cache, v_scale)):
        form = BlockFormat(kind, block_size, *x.shape[1:])
        codes, scales = quantize(x, kind, fixed)
        codes_of(cache, form).index_put_(places, codes)
        scales_of(cache, form).index_put_(places, scales)


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
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    *,
    out: Tensor,
) -> None:
    both = attention.turned(torch.cat((q, k), 1), table).to(q.dtype)
    out.copy_(both[:, : q.shape[1]])
    quantized_kv_write(both[:, q.shape[1] :], v, k_cache, v_cache, slots, kind, block_size, k_scale, v_scale)


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
    *,
    out: Tensor,
) -> None:
    keys, values = pages_of(q, k_cache, v_cache, kind, block_size, kv_heads, value_size)
    attention.attend(q, keys, values, block_tables, query_starts, kv_lengths, scale, window, out)


def pages_of(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, kind: str, block_size: int, kv_heads: int, value_size: int
) -> tuple[Quantized, Quantized]:
    """The keys and the values of an attention call."""
    keys, values = (BlockFormat(kind, block_size, kv_heads, size) for size in (q.shape[2], value_size))
    return Quantized(k_cache, keys), Quantized(v_cache, values)
