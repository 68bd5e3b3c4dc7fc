"""Rotary embedding and paged attention through torch's functions. T tokens · N sequences · H, K heads · D, E sizes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bestiary.core.kernels.workspace import GATHERED


def rope(x: Tensor, table: Tensor, *, out: Tensor) -> None:
    out.copy_(_turned(x, table))


def kv_write(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    k_cache.view(-1, *k_cache.shape[2:]).index_put_((slots,), k.to(k_cache.dtype))
    v_cache.view(-1, *v_cache.shape[2:]).index_put_((slots,), v.to(v_cache.dtype))


def rope_kv_write(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, *, out: Tensor
) -> None:
    both = _turned(torch.cat((q, k), 1), table)
    out.copy_(both[:, : q.shape[1]])
    kv_write(both[:, q.shape[1] :], v, k_cache, v_cache, slots)


def _turned(x: Tensor, table: Tensor) -> Tensor:
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
    """Gather each sequence's pages and call torch's attention: decodes as one padded batch, prompts one by one.

    On a processor in fp32, where 16-bit attention is neither faster nor as near to the reference. Elsewhere a step of
    nothing but decodes never waits for the host, so that it can be recorded.
    """
    if q.device.type == "cpu":
        q = q.float()
    elif q.shape[0] == kv_lengths.shape[0]:
        _decode_on_device(q, k_cache, v_cache, block_tables, kv_lengths, scale, window, out)
        return
    starts, lengths = query_starts.tolist(), kv_lengths.tolist()
    sequences = range(len(lengths))
    decodes = [n for n in sequences if starts[n + 1] - starts[n] == 1]
    if len(decodes) == len(lengths):
        _decode(q, k_cache, v_cache, block_tables, lengths, scale, window, out)
    elif decodes:
        rows = torch.tensor([starts[n] for n in decodes], device=q.device)
        chosen = torch.tensor(decodes, device=q.device)
        part = q.new_empty(len(decodes), *out.shape[1:])
        known = [lengths[n] for n in decodes]
        _decode(q[rows], k_cache, v_cache, block_tables[chosen], known, scale, window, part)
        out[rows] = part.to(out.dtype)
    for n in sequences:
        if starts[n + 1] - starts[n] > 1:
            rows_of_n = slice(starts[n], starts[n + 1])
            out[rows_of_n] = _sequence(q[rows_of_n], k_cache, v_cache, block_tables[n], lengths[n], scale, window)


def _decode_on_device(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    kv_lengths: Tensor,
    scale: float,
    window: int | None,
    out: Tensor,
) -> None:
    """One query each, over all columns of the tables: L = P · S entries, of which those behind a length are hidden."""
    entry = k_cache[0, 0].numel() * q.element_size() * block_tables.shape[1] * k_cache.shape[1]
    some = max(1, GATHERED // entry)
    for first in range(0, q.shape[0], some):
        rows = slice(first, first + some)
        out[rows] = _gathered(q[rows], k_cache, v_cache, block_tables[rows], kv_lengths[rows], scale, window)


def _gathered(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    kv_lengths: Tensor,
    scale: float,
    window: int | None,
) -> Tensor:
    sequences, kv_heads, block_size = q.shape[0], k_cache.shape[2], k_cache.shape[1]
    places = torch.arange(block_tables.shape[1] * block_size, device=q.device)
    ends = kv_lengths.unsqueeze(1)
    hidden = places >= ends if window is None else (places >= ends) | (places < ends - window)
    # What is hidden may be anything, NaN too, and a weight of zero does not hide that.
    keys, values = (
        cache.index_select(0, block_tables.reshape(-1))
        .view(sequences, -1, *cache.shape[2:])
        .masked_fill(hidden[:, :, None, None], 0)
        .transpose(1, 2)
        .to(q.dtype)
        for cache in (k_cache, v_cache)
    )
    # The query heads of a key-value head as its queries: no copy of the keys for each of them.
    grouped = q.reshape(sequences, kv_heads, -1, q.shape[-1])
    mixed = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=~hidden[:, None, None], scale=scale)
    return mixed.reshape(sequences, -1, v_cache.shape[-1])


def _decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    lengths: list[int],
    scale: float,
    window: int | None,
    out: Tensor,
) -> None:
    """One query each: the visible tokens of all sequences as one padded batch; padding repeats a sequence's last token."""
    if len(lengths) == 1:
        out.copy_(_sequence(q, k_cache, v_cache, block_tables[0], lengths[0], scale, window))
        return
    block_size = k_cache.shape[1]
    ends = torch.tensor(lengths, device=q.device).unsqueeze(1)
    visible = ends if window is None else ends.clamp(max=window)
    longest = max(lengths) if window is None else min(max(lengths), window)
    places = torch.arange(longest, device=q.device) + (ends - visible)
    inside = places < ends
    places = torch.minimum(places, ends - 1)
    slots = block_tables.long().gather(1, places // block_size) * block_size + places % block_size
    mixed = F.scaled_dot_product_attention(
        q.unsqueeze(2),
        _rows(k_cache, slots, q.dtype),
        _rows(v_cache, slots, q.dtype),
        attn_mask=inside[:, None, None] if min(lengths) < longest else None,
        scale=scale,
        enable_gqa=q.shape[1] != k_cache.shape[2],
    )
    out.copy_(mixed.squeeze(2))


def _sequence(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, table: Tensor, length: int, scale: float, window: int | None
) -> Tensor:
    block_size, new = k_cache.shape[1], q.shape[0]
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
    mixed = F.scaled_dot_product_attention(
        q.transpose(0, 1).unsqueeze(0),
        _pages(k_cache, blocks, visible, q.dtype),
        _pages(v_cache, blocks, visible, q.dtype),
        attn_mask=mask,
        is_causal=whole,
        scale=scale,
        enable_gqa=q.shape[1] != k_cache.shape[2],
    )
    return mixed.squeeze(0).transpose(0, 1)


def _pages(cache: Tensor, blocks: Tensor, visible: slice, dtype: torch.dtype) -> Tensor:
    """The visible entries of consecutive blocks of one sequence as ``[1, K, L, D]``."""
    gathered = cache.index_select(0, blocks).flatten(0, 1)[visible]
    return gathered.transpose(0, 1).unsqueeze(0).to(dtype)


def _rows(cache: Tensor, slots: Tensor, dtype: torch.dtype) -> Tensor:
    """The entries of the slots ``[N, L]`` as ``[N, K, L, D]``."""
    gathered = cache.view(-1, *cache.shape[2:])[slots]
    return gathered.transpose(1, 2).to(dtype)
