"""Batch-invariant attention over a cache of few bits: each number follows from its own token's bytes, and goes through the
ordinary batch-invariant kernel."""

from __future__ import annotations

from torch import Tensor

from bestiary.core.kernels.invariant_attention import attend
from bestiary.core.kernels.quantized_cache import pages_of


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
    attend(q, keys, values, block_tables, query_starts, kv_lengths, scale, window, out)
