"""Rotary embedding and paged attention through torch's functions. T tokens · N sequences · H, K heads · D, E sizes."""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from bestiary.core.kernels.pages import Elements, Pages
from bestiary.core.kernels.workspace import GATHERED

#: Bytes of keys that are gathered at a time on a processor: they stay in its cache.
CACHED: Final = 2**21


def rope(x: Tensor, table: Tensor, *, out: Tensor) -> None:
    out.copy_(turned(x, table))


def kv_write(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    k_cache.view(-1, *k_cache.shape[2:]).index_put_((slots,), k.to(k_cache.dtype))
    v_cache.view(-1, *v_cache.shape[2:]).index_put_((slots,), v.to(v_cache.dtype))


def rope_kv_write(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, *, out: Tensor
) -> None:
    both = turned(torch.cat((q, k), 1), table)
    out.copy_(both[:, : q.shape[1]])
    kv_write(both[:, q.shape[1] :], v, k_cache, v_cache, slots)


def turned(x: Tensor, table: Tensor) -> Tensor:
    """x ``[T, H, D]`` rotated, in fp32. No fused multiply-add: what torch fuses depends on an element's place."""
    rotated = table.shape[-1]
    cosine, sine = table.unsqueeze(1).chunk(2, -1)
    wide = x.float()
    first, second = wide[..., :rotated].chunk(2, -1)
    low = (first * cosine).sub_(second * sine)
    high = (second * cosine).add_(first * sine)
    rest = (wide[..., rotated:],) if rotated < x.shape[-1] else ()
    return torch.cat((low, high, *rest), -1)


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    query_starts: Tensor,
    kv_lengths: Tensor,
    scale: float,
    window: int | None,
    *,
    out: Tensor,
) -> None:
    attend(q, Elements(k_cache), Elements(v_cache), block_tables, query_starts, kv_lengths, scale, window, out)


def attend(
    q: Tensor,
    keys: Pages,
    values: Pages,
    block_tables: Tensor,
    query_starts: Tensor,
    kv_lengths: Tensor,
    scale: float,
    window: int | None,
    out: Tensor,
) -> None:
    """Gather each sequence's pages and call torch's attention: decodes as padded batches, prompts one by one.

    On a processor in fp32, where 16-bit attention is neither faster nor as near to the reference. Elsewhere a step of
    nothing but decodes never waits for the host, so that it can be recorded.
    """
    if not q.shape[0]:
        return
    if q.device.type == "cpu":
        q = q.float()
    elif q.shape[0] == kv_lengths.shape[0]:
        _decode(q, keys, values, block_tables, kv_lengths, scale, window, out)
        return
    starts, lengths = query_starts.tolist(), kv_lengths.tolist()
    sequences = range(len(lengths))
    decodes = [n for n in sequences if starts[n + 1] - starts[n] == 1]
    if len(decodes) == len(lengths):
        _decode_in_parts(q, keys, values, block_tables, kv_lengths, lengths, scale, window, out)
    elif decodes:
        rows = torch.tensor([starts[n] for n in decodes], device=q.device)
        chosen = torch.tensor(decodes, device=q.device)
        part = q.new_empty(len(decodes), *out.shape[1:])
        known = [lengths[n] for n in decodes]
        tables, ends = block_tables[chosen], kv_lengths[chosen]
        _decode_in_parts(q[rows], keys, values, tables, ends, known, scale, window, part)
        out[rows] = part.to(out.dtype)
    for n in sequences:
        if starts[n + 1] - starts[n] > 1:
            rows_of_n = slice(starts[n], starts[n + 1])
            out[rows_of_n] = _sequence(q[rows_of_n], keys, values, block_tables[n], lengths[n], scale, window)


def _decode_in_parts(
    q: Tensor,
    keys: Pages,
    values: Pages,
    block_tables: Tensor,
    kv_lengths: Tensor,
    lengths: list[int],
    scale: float,
    window: int | None,
    out: Tensor,
) -> None:
    """One query each, of known lengths: so many sequences at a time that what is gathered for them stays small."""
    block_size = keys.block_size
    # Of each sequence its own columns, from the oldest key that it sees: windows lie where the lengths put them.
    first = [0 if window is None else max(0, length - window) // block_size for length in lengths]
    width = max(-(-length // block_size) - begin for length, begin in zip(lengths, first, strict=True))
    tables, ends = block_tables[:, :width], kv_lengths
    if any(first):
        begins = torch.tensor(first, device=q.device)
        columns = begins.unsqueeze(1) + torch.arange(width, device=q.device)
        tables = block_tables.gather(1, columns.clamp_(max=block_tables.shape[1] - 1))
        ends = kv_lengths - begins * block_size
    most = _at_a_time(q, width * keys.block_size * keys.heads * keys.size)
    for start in range(0, len(lengths), most):
        part = slice(start, start + most)
        out[part] = _gathered(q[part], keys, values, tables[part], ends[part], scale, window)


def _decode(
    q: Tensor,
    keys: Pages,
    values: Pages,
    block_tables: Tensor,
    kv_lengths: Tensor,
    scale: float,
    window: int | None,
    out: Tensor,
) -> None:
    """One query each, of lengths that the host does not know: over all columns of the tables."""
    most = _at_a_time(q, keys.block_size * keys.heads * keys.size * block_tables.shape[1])
    for first in range(0, q.shape[0], most):
        rows = slice(first, first + most)
        out[rows] = _gathered(q[rows], keys, values, block_tables[rows], kv_lengths[rows], scale, window)


def _gathered(
    q: Tensor,
    keys: Pages,
    values: Pages,
    block_tables: Tensor,
    kv_lengths: Tensor,
    scale: float,
    window: int | None,
) -> Tensor:
    """One query each, over all columns of the tables: L = P · S entries, of which those behind a length are hidden."""
    sequences, kv_heads, block_size = q.shape[0], keys.heads, keys.block_size
    places = torch.arange(block_tables.shape[1] * block_size, device=q.device)
    ends = kv_lengths.unsqueeze(1)
    hidden = places >= ends if window is None else (places >= ends) | (places < ends - window)
    blocks = block_tables.reshape(-1)
    k, v = (
        _shown(pages.blocks(blocks), hidden).view(sequences, -1, pages.heads, pages.size).transpose(1, 2).to(q.dtype)
        for pages in (keys, values)
    )
    # The query heads of a key-value head as its queries: no copy of the keys for each of them.
    grouped = q.reshape(sequences, kv_heads, -1, q.shape[-1])
    mixed = F.scaled_dot_product_attention(grouped, k, v, attn_mask=~hidden[:, None, None], scale=scale)
    return mixed.reshape(sequences, -1, values.size)


def _at_a_time(q: Tensor, numbers: int) -> int:
    """How many pieces of so many numbers, in q's dtype, are gathered at a time."""
    return max(1, (CACHED if q.device.type == "cpu" else GATHERED) // (numbers * q.element_size()))


def _shown(gathered: Tensor, hidden: Tensor) -> Tensor:
    """Zeros in place of what is hidden: it may be anything, NaN too, and a weight of zero does not hide that."""
    if gathered.device.type == "cpu":
        # Few rows are hidden, and a processor takes ten times as long to look at all of them.
        return gathered.flatten(0, 1).index_fill_(0, hidden.flatten().nonzero().squeeze(1), 0)
    return gathered.flatten(0, 1).masked_fill_(hidden.view(-1, 1, 1), 0)


def _sequence(
    q: Tensor, keys: Pages, values: Pages, table: Tensor, length: int, scale: float, window: int | None
) -> Tensor:
    block_size, new = keys.block_size, q.shape[0]
    oldest = 0 if window is None else max(0, length - new - window + 1)  # older tokens may be gone from the cache
    first = oldest // block_size
    blocks = table[first : -(-length // block_size)]
    visible = slice(oldest - first * block_size, length - first * block_size)
    whole = new == length and window is None
    mask = None
    if not whole and (new > 1 or (window is not None and length > window)):
        behind = torch.arange(length - new, length, device=q.device).unsqueeze(1)
        behind = behind - torch.arange(oldest, length, device=q.device)
        mask = behind >= 0 if window is None else (behind >= 0) & (behind < window)
    k, v = (pages.blocks(blocks).flatten(0, 1)[visible] for pages in (keys, values))
    kv_heads = keys.heads
    mixed = q.new_empty(new, q.shape[1], values.size)
    at_a_time = min(kv_heads, _at_a_time(q, len(k) * keys.size))
    per_head = q.shape[1] // kv_heads
    for first in range(0, kv_heads, at_a_time):
        chosen, queries = slice(first, first + at_a_time), slice(first * per_head, (first + at_a_time) * per_head)
        mixed[:, queries] = F.scaled_dot_product_attention(
            q[:, queries].transpose(0, 1).unsqueeze(0),
            k[:, chosen].transpose(0, 1).unsqueeze(0).to(q.dtype),
            v[:, chosen].transpose(0, 1).unsqueeze(0).to(q.dtype),
            attn_mask=mask,
            is_causal=whole,
            scale=scale,
            enable_gqa=per_head > 1,
        )[0].transpose(0, 1)
    return mixed
