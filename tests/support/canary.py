"""A model whose next token is a checksum of all its own cache contents and positions, read through the block tables.

Any stale, shifted, foreign or missing slot changes its output. A stored value depends on the value before it, as a second
layer's keys do, so that equal tokens after different prefixes store different values. Exact integers, no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from bestiary.core.runtime.batch import Batch, Segment
from bestiary.core.runtime.cache_groups import CacheGroup
from bestiary.core.runtime.random_stream import mix
from bestiary.core.runtime.request import Request
from bestiary.core.sampling_params import ResolvedParams, SamplingParams

VOCAB = 97


def params(**said: object) -> ResolvedParams:
    """Resolved parameters of a request that ends by length."""
    said.setdefault("temperature", 0.0)
    return SamplingParams(**said).resolve(vocab_size=VOCAB)  # type: ignore[arg-type]


class Canary:
    """Runs steps on its own paged cache."""

    def __init__(self, groups: Sequence[CacheGroup]) -> None:
        self.groups = tuple(groups)
        self.cache: list[dict[tuple[int, int], int]] = [{} for _ in groups]
        self.writes = 0

    def run(self, batch: Batch) -> list[list[int]]:
        """Per segment the next token after each wanted row."""
        assert all(segment.count > 0 for segment in batch.segments), "an empty segment"
        for segment in batch.segments:
            self._write(segment)
        return [
            [self._next(segment.request, segment.start + row) for row in segment.rows] for segment in batch.segments
        ]

    def _slot(self, request: Request, g: int, position: int) -> tuple[int, int]:
        size = self.groups[g].block_size
        block = request.blocks[g][position // size]
        assert 0 <= block < self.groups[g].num_blocks, f"group {g} position {position} lies in block {block}"
        return block, position % size

    def _write(self, segment: Segment) -> None:
        request = segment.request
        for position in range(segment.start, segment.start + segment.count):
            for g in range(len(self.groups)):
                before = self.cache[g][self._slot(request, g, position - 1)] if position else 0
                value = mix(before + mix(request.tokens[position] * 8 + g) + position)
                self.cache[g][self._slot(request, g, position)] = value
                self.writes += 1

    def _next(self, request: Request, position: int) -> int:
        total = 0
        for g, group in enumerate(self.groups):
            first = 0 if group.window is None else max(0, position - group.window + 1)
            for p in range(first, position + 1):
                total += mix(self.cache[g][self._slot(request, g, p)] ^ p)
        return total % VOCAB


def alone(groups: Sequence[CacheGroup], prompt: Sequence[int], length: int) -> list[int]:
    """The ``length`` tokens that follow a prompt, computed without blocks."""
    return list(_alone(tuple(group.window for group in groups), tuple(prompt), length))


@lru_cache(maxsize=4096)
def _alone(windows: tuple[int | None, ...], prompt: tuple[int, ...], length: int) -> list[int]:
    tokens, values = list(prompt), [list[int]() for _ in windows]
    for position in range(len(prompt) + length - 1):
        for g in range(len(windows)):
            before = values[g][-1] if position else 0
            values[g].append(mix(before + mix(tokens[position] * 8 + g) + position))
        if position >= len(prompt) - 1:
            total = 0
            for g, window in enumerate(windows):
                first = 0 if window is None else max(0, position - window + 1)
                total += sum(mix(values[g][p] ^ p) for p in range(first, position + 1))
            tokens.append(total % VOCAB)
    return tokens[len(prompt) :]
