"""Batch-invariant paged attention: prompts, chunks of them and decodes by the same products.

W query tiles of the step · N sequences · T query rows · H query heads, K key-value heads, G = H / K · D, E sizes of key and
value · Q query rows of a tile · S positions of a split.

Keys are taken in splits, which lie at multiples of S counted from a sequence's first token, wherever its blocks lie. A tile
holds rows of one sequence. A tile and a split give two products of one shape each; a split's result is merged into the
rows' own by log-sum-exp, in the order of the splits. What a row does not see has the weight zero exactly, and nothing that
no row of its sequence sees is read as a number: slots that were never written, or were given away, may hold NaN.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bestiary.core.kernels.invariant import padded, tile_rows
from bestiary.core.kernels.pages import Elements, Pages

#: Positions in a split, S.
SPLIT = 128


class _Work(NamedTuple):
    """The step's query tiles.

    Args:
        rows: ``[W · Q]`` where each tile row lies in the packed queries; padding repeats the tile's last.
        own: ``[W · Q]`` bool, the rows that are no padding.
        positions: ``[W, Q]`` of the queries in their sequences, −1 for padding.
        sequences: of each tile.
        splits: of each tile, the first that a row of it sees and the one after the last.
        oldest: ``[N]``, the first position that a row of the sequence sees.
    """

    rows: Tensor
    own: Tensor
    positions: Tensor
    sequences: list[int]
    splits: list[tuple[int, int]]
    oldest: Tensor


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
    """The same over pages."""
    work = _work(query_starts.tolist(), kv_lengths.tolist(), window, tile_rows(q.device), q.device)
    if not work.sequences:
        return
    heads, kv_heads, value_size = q.shape[1], keys.heads, values.size
    queries = _queries(q, work, kv_heads)
    highest = queries.new_full((*queries.shape[:-1], 1), -torch.inf)
    # The feature after the value's own is one in every value: it sums the weights.
    mixed = queries.new_zeros(*queries.shape[:-1], padded(value_size + 1))
    for split in range(min(first for first, _ in work.splits), max(last for _, last in work.splits)):
        tiles = [tile for tile, (first, last) in enumerate(work.splits) if first <= split < last]
        among = sorted({work.sequences[tile] for tile in tiles})
        chosen = torch.tensor(among, device=q.device)
        places = _places(split, q.device)
        inside = (places >= work.oldest[chosen, None]) & (places < kv_lengths[chosen, None])
        slots = _slots(block_tables[chosen], places, inside, keys.block_size)
        k = _entries(keys, slots, inside, padded(q.shape[2]))
        v = _entries(values, slots, inside, mixed.shape[-1])
        v[..., value_size] = 1
        where = torch.tensor(tiles, device=q.device)
        pairs = [(tile, among.index(work.sequences[tile])) for tile in tiles]
        scores = queries.new_empty(len(tiles), *queries.shape[1:3], SPLIT)
        for index, (tile, sequence) in enumerate(pairs):
            torch.bmm(queries[tile], k[sequence].transpose(1, 2), out=scores[index])
        seen = _seen(work.positions[where], places, window).repeat(1, heads // kv_heads, 1).unsqueeze(1)
        scores = scores.mul_(scale).masked_fill_(~seen, -torch.inf)
        before = highest[where]
        now = torch.maximum(before, scores.amax(-1, keepdim=True))
        base = now.masked_fill(now == -torch.inf, 0)  # of rows that have seen nothing yet
        weights = (scores - base).exp_()
        more = mixed.new_empty(len(tiles), *mixed.shape[1:])
        for index, (_, sequence) in enumerate(pairs):
            torch.bmm(weights[index], v[sequence], out=more[index])
        highest[where] = now
        mixed[where] = (mixed[where] * (before - base).exp_()).add_(more)
    made = mixed[..., :value_size] / mixed[..., value_size : value_size + 1]
    made = made.view(len(work.sequences), kv_heads, heads // kv_heads, -1, value_size)
    out[work.rows[work.own]] = made.permute(0, 3, 1, 2, 4).reshape(-1, heads, value_size)[work.own].to(out.dtype)


def _work(starts: list[int], lengths: list[int], window: int | None, size: int, device: torch.device) -> _Work:
    """Cut the queries of each sequence into tiles of ``size`` rows."""
    sequences: list[int] = []
    tiles: list[tuple[int, int, int]] = []  # first row, first position, number of rows
    splits: list[tuple[int, int]] = []
    oldest: list[int] = []
    for n, length in enumerate(lengths):
        start, stop = starts[n], starts[n + 1]
        first = length - (stop - start)
        oldest.append(_first_seen(first, window))
        for row in range(start, stop, size):
            position, count = first + row - start, min(size, stop - row)
            sequences.append(n)
            tiles.append((row, position, count))
            splits.append((_first_seen(position, window) // SPLIT, (position + count - 1) // SPLIT + 1))
    first_rows, first_positions, counts = torch.tensor(tiles, device=device, dtype=torch.int64).view(-1, 3, 1).unbind(1)
    place = torch.arange(size, device=device)
    own = place < counts
    return _Work(
        rows=(first_rows + place).minimum(first_rows + counts - 1).flatten(),
        own=own.flatten(),
        positions=torch.where(own, first_positions + place, -1),
        sequences=sequences,
        splits=splits,
        oldest=torch.tensor(oldest, device=device),
    )


def _first_seen(position: int, window: int | None) -> int:
    return 0 if window is None else max(0, position - window + 1)


def _queries(q: Tensor, work: _Work, kv_heads: int) -> Tensor:
    """The tiles' rows in fp32, those of the heads that share a key-value head together: ``[W, K, G · Q, D]``, D padded."""
    tiles, heads, size = len(work.sequences), q.shape[1], q.shape[2]
    made = q.new_zeros(tiles, kv_heads, heads // kv_heads * work.positions.shape[1], padded(size), dtype=torch.float32)
    rows = q[work.rows].view(tiles, -1, kv_heads, heads // kv_heads, size)
    made[..., :size] = rows.permute(0, 2, 3, 1, 4).reshape(*made.shape[:-1], size)
    return made


def _places(split: int, device: torch.device) -> Tensor:
    """The positions of a split, ``[1, S]``."""
    return torch.arange(split * SPLIT, (split + 1) * SPLIT, device=device).unsqueeze(0)


def _slots(tables: Tensor, places: Tensor, inside: Tensor, block_size: int) -> Tensor:
    """Where each sequence's positions lie in the cache, ``[N, S]``; any place that exists for those outside."""
    blocks = tables.long().gather(1, (places // block_size).clamp(max=tables.shape[1] - 1).expand_as(inside))
    return torch.where(inside, blocks * block_size + places % block_size, 0)


def _entries(pages: Pages, slots: Tensor, inside: Tensor, size: int) -> Tensor:
    """The slots' entries in fp32, zeros outside: ``[N, K, S, size]``."""
    found = pages.entries(slots).masked_fill_(~inside[..., None, None], 0)
    made = found.new_zeros(found.shape[0], found.shape[2], found.shape[1], size, dtype=torch.float32)
    made[..., : found.shape[3]] = found.transpose(1, 2)
    return made


def _seen(positions: Tensor, places: Tensor, window: int | None) -> Tensor:
    """Which positions of a split each query sees: ``[W, Q, S]`` bool."""
    behind = positions.unsqueeze(-1) - places
    seen = behind >= 0
    return seen if window is None else seen & (behind < window)
