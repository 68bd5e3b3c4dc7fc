"""Attention over a paged key-value cache.

T packed tokens · N sequences · H query heads · K key-value heads · D key size · E value size · B blocks · S block size ·
P blocks a sequence can have. A cache's last block belongs to nobody: slot −1, that of padding, addresses its last entry.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bestiary.core.ops.cost import Cost, nbytes
from bestiary.core.ops.declare import EXACT, Tolerance, like_first, normal, op
from bestiary.core.ops.rotary import rope, rotation_cost

SOFTMAX = {
    "float64": Tolerance(1e-6, 1e-6),
    "float32": Tolerance(2e-5, 2e-5),
    "bfloat16": Tolerance(2e-2, 2e-2),
    "float16": Tolerance(4e-3, 4e-3),
}


def _write_inputs(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    # Tokens, blocks and their size, heads and their size; the last a model's.
    for tokens, blocks, block, heads, size in (
        (1, 4, 4, 1, 8),
        (6, 4, 4, 2, 16),
        (5, 4, 4, 3, 10),
        (9, 16, 1, 2, 8),
        (70, 9, 16, 8, 128),
    ):
        cache = [normal(generator, blocks, block, heads, size, dtype=dtype) for _ in "kv"]
        new = [normal(generator, tokens, heads, size, dtype=dtype) for _ in "kv"]
        slots = torch.randperm((blocks - 1) * block, generator=generator, device=generator.device)[:tokens]
        slots[tokens - 1 :] = -1 if tokens > 1 else 3
        yield new[0], new[1], cache[0], cache[1], slots


def nothing(*args: Any) -> None:
    """The fake of an op without a result."""


def _write_cost(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> Cost:
    return Cost(0, nbytes(k, v, slots) + k.numel() * k_cache.element_size() + v.numel() * v_cache.element_size())


@op(
    inputs=_write_inputs,
    tolerances=EXACT,
    mutates=("k_cache", "v_cache"),
    fake=nothing,
    rows=("k", "v", "slots"),
    cost=_write_cost,
)
def kv_write(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """Put each token's key and value into its slot (block · S + offset; −1 for padding, which no sequence reads).

    k ``[T, K, D]``, v ``[T, K, E]``, k_cache ``[B, S, K, D]``, v_cache ``[B, S, K, E]``, slots ``[T]`` int64.
    """
    k_cache.view(-1, *k_cache.shape[2:])[slots] = k.to(k_cache.dtype)
    v_cache.view(-1, *v_cache.shape[2:])[slots] = v.to(v_cache.dtype)


def _rope_write_inputs(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    for k, v, k_cache, v_cache, slots in _write_inputs(generator, dtype):
        angles = normal(generator, k.shape[0], k.shape[-1] // 2, dtype=torch.float32)
        table = torch.cat((angles.cos(), angles.sin()), -1)
        q = normal(generator, k.shape[0], 2 * k.shape[1], k.shape[2], dtype=dtype)
        yield q, k, v, table, k_cache, v_cache, slots


def _rope_write_cost(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor
) -> Cost:
    keys = Cost(rotation_cost(k, table).flops, 0)  # turned on their way into the cache
    return rotation_cost(q, table) + keys + _write_cost(k, v, k_cache, v_cache, slots)


@op(
    inputs=_rope_write_inputs,
    mutates=("k_cache", "v_cache"),
    fake=like_first,
    rows=("q", "k", "v", "table", "slots"),
    cost=_rope_write_cost,
)
def rope_kv_write(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor
) -> Tensor:
    """Rotate queries and keys, put keys and values into their slots, return the queries ``[T, H, D]``."""
    turned = rope(q, table)
    kv_write(rope(k, table), v, k_cache, v_cache, slots)
    return turned


def _attention_inputs(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    batches: tuple[tuple[tuple[int, int], ...], ...] = (
        ((1, 1),),
        ((1, 9), (1, 3), (1, 16)),  # decode
        ((5, 5), (3, 11), (1, 7)),  # a prompt, a later chunk of one, a decode
        ((1, 4), (0, 0), (3, 3)),  # an empty sequence: padding
    )
    for heads, kv_heads, size, value_size, window in ((2, 2, 8, 8, None), (6, 2, 16, 16, 5), (4, 1, 16, 8, None)):
        for batch in batches:
            yield attention_case(generator, dtype, batch, (heads, kv_heads, size, value_size, window))
    yield attention_case(generator, dtype, batches[2], (1, 1, 10, 6, 3))  # one head, of sizes that no block divides
    # As models are: several tiles of keys and of queries, blocks of the usual sizes, a window that ends within a tile.
    many = ((1, 300), (70, 70), (5, 200), (1, 17), (130, 259))
    yield attention_case(generator, dtype, many, (4, 2, 64, 64, None), block_size=16)
    yield attention_case(generator, dtype, many, (4, 1, 128, 128, 100), block_size=32)
    yield attention_case(generator, dtype, ((1, 70), (9, 40)), (2, 2, 16, 16, None), block_size=1)
    # A scale that does not follow from the sizes.
    *others, scale, window = attention_case(generator, dtype, batches[2], (2, 1, 16, 16, None))
    yield *others, scale / 2, window


def attention_case(
    generator: torch.Generator,
    dtype: torch.dtype,
    batch: tuple[tuple[int, int], ...],
    sizes: tuple[int, int, int, int, int | None],
    block_size: int = 4,
) -> tuple[Any, ...]:
    """Arguments of :func:`paged_attention`.

    Args:
        batch: new tokens and length of each sequence.
        sizes: query heads, key-value heads, size of keys, of values, window.
    """
    heads, kv_heads, size, value_size, window = sizes
    columns = max(4, *(-(-length // block_size) for _, length in batch))
    device, blocks = generator.device, max(16, columns * len(batch) + 1)
    queries = torch.tensor([query for query, _ in batch], device=device)
    starts = torch.cat((queries.new_zeros(1), queries.cumsum(0))).int()
    lengths = torch.tensor([length for _, length in batch], device=device, dtype=torch.int32)
    order = torch.randperm(blocks - 1, generator=generator, device=device)[: columns * len(batch)]
    tables = order.view(len(batch), columns).int()
    q = normal(generator, int(starts[-1]), heads, size, dtype=dtype)
    k_cache = normal(generator, blocks, block_size, kv_heads, size, dtype=dtype)
    v_cache = normal(generator, blocks, block_size, kv_heads, value_size, dtype=dtype)
    return q, k_cache, v_cache, tables, starts, lengths, size**-0.5, window


def decoded(args: tuple[Any, ...], rows: Sequence[int]) -> tuple[Any, ...]:
    """The rows as decodes: each query is the last token of a sequence that ends with it."""
    q, k_cache, v_cache, tables, starts, lengths, scale, window = args
    ends = starts[1:].tolist()
    owners = [next(n for n, end in enumerate(ends) if row < end) for row in rows]
    # What comes after a query in its sequence is as if it were not there yet.
    seen = [int(lengths[n]) - (ends[n] - 1 - row) for n, row in zip(owners, rows, strict=True)]
    chosen = torch.tensor(list(rows), dtype=torch.int64, device=q.device)
    return (
        q[chosen],
        k_cache,
        v_cache,
        tables[torch.tensor(owners, dtype=torch.int64, device=q.device)],
        torch.arange(len(rows) + 1, dtype=torch.int32, device=q.device),
        torch.tensor(seen, dtype=torch.int32, device=q.device),
        scale,
        window,
    )


def _attention_shape(q: Tensor, k_cache: Tensor, v_cache: Tensor, *rest: Any) -> Tensor:
    return q.new_empty(*q.shape[:-1], v_cache.shape[-1])


def _attention_cost(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    query_starts: Tensor,
    kv_lengths: Tensor,
    scale: float,
    window: int | None,
) -> Cost:
    kv_heads, size, value_size = k_cache.shape[2], k_cache.shape[3], v_cache.shape[3]
    cached = kv_heads * (size * k_cache.element_size() + value_size * v_cache.element_size())
    return attention_cost(q, block_tables, query_starts, kv_lengths, window, k_cache.shape[1], value_size, cached)


def attention_cost(
    q: Tensor,
    block_tables: Tensor,
    query_starts: Tensor,
    kv_lengths: Tensor,
    window: int | None,
    block_size: int,
    value_size: int,
    cached: int,
) -> Cost:
    """Of the keys and values that some query sees, each read once, and of the pairs of queries and keys that meet.

    Args:
        cached: bytes of a token's keys and values.
    """
    pairs = read = blocks = 0
    starts = query_starts.tolist()
    for n, length in enumerate(kv_lengths.tolist()):
        queries = starts[n + 1] - starts[n]
        seen = [min(position + 1, window or position + 1) for position in range(length - queries, length)]
        oldest = length - queries + 1 - seen[0] if seen else length
        pairs, read = pairs + sum(seen), read + length - oldest
        blocks += -(-length // block_size) - oldest // block_size if seen else 0
    heads, size = q.shape[1:]
    made = q.shape[0] * heads * value_size * q.element_size()
    tables = blocks * block_tables.element_size() + nbytes(query_starts, kv_lengths)
    return Cost(2 * pairs * heads * (size + value_size), nbytes(q) + read * cached + made + tables)


@op(inputs=_attention_inputs, tolerances=SOFTMAX, fake=_attention_shape, rows=decoded, cost=_attention_cost)
def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    query_starts: Tensor,
    kv_lengths: Tensor,
    scale: float,
    window: int | None,
) -> Tensor:
    """Causal softmax attention of each sequence's newest tokens over its cached keys and values, in fp32.

    Where there are as many queries as sequences, each sequence has one. All keys and values of a step are in the cache
    before any is read.

    Sequence n's queries are rows ``query_starts[n] … query_starts[n+1]`` of q, the last of its ``kv_lengths[n]`` tokens;
    a query at position p sees positions ``p − window < j ≤ p`` (all ``j ≤ p`` without a window).

    q ``[T, H, D]``, k_cache ``[B, S, K, D]``, v_cache ``[B, S, K, E]``, block_tables ``[N, P]`` int32, query_starts
    ``[N + 1]`` int32, kv_lengths ``[N]`` int32 → ``[T, H, E]`` in q's dtype. H is a multiple of K; head h reads
    key-value head ``h · K // H``.
    """
    result = q.new_zeros(*q.shape[:-1], v_cache.shape[-1])
    starts, lengths = query_starts.tolist(), kv_lengths.tolist()
    groups = q.shape[1] // k_cache.shape[2]
    for n, length in enumerate(lengths):
        first, last = starts[n], starts[n + 1]
        if first == last:
            continue
        oldest = 0 if window is None else max(0, length - (last - first) - window + 1)  # what lies before may be gone
        places = torch.arange(oldest, length, device=q.device)
        blocks, offsets = block_tables[n, places // k_cache.shape[1]].long(), places % k_cache.shape[1]
        keys = k_cache[blocks, offsets].float().repeat_interleave(groups, 1)
        values = v_cache[blocks, offsets].float().repeat_interleave(groups, 1)
        scores = torch.einsum("thd,lhd->htl", q[first:last].float(), keys) * scale
        behind = torch.arange(length - (last - first), length, device=q.device).unsqueeze(1) - places
        hidden = (behind < 0) if window is None else (behind < 0) | (behind >= window)
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        result[first:last] = torch.einsum("htl,lhd->thd", weights, values).to(q.dtype)
    return result
