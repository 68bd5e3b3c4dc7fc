"""The tensors that a request keeps of its tokens. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

#: A tensor's rows on the host: float32 of floating tensors, others as they are.
Rows = npt.NDArray[Any]


class Tapped:
    """What the steps gave of one request's tensors, by position. A position that is computed anew counts as it was last."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(dict.fromkeys(names))
        self._chunks: list[tuple[int, Mapping[str, Rows]]] = []

    def add(self, start: int, rows: Mapping[str, Rows]) -> None:
        """Rows of the positions from ``start`` on, by name."""
        self._chunks.append((start, rows))

    def arrays(self, most: int) -> dict[str, Rows]:
        """By name ``[tokens, …]`` from position 0 on, of at most ``most`` tokens: steps may have run ahead of the end."""
        chunks = list(self._chunks)  # another thread may add to it
        if not chunks:
            return {}
        length = min(most, max(start + len(rows[self.names[0]]) for start, rows in chunks))
        return {name: self._array(name, chunks, max(0, length)) for name in self.names}

    def _array(self, name: str, chunks: list[tuple[int, Mapping[str, Rows]]], length: int) -> Rows:
        first = chunks[0][1][name]
        whole = np.empty((length, *first.shape[1:]), first.dtype)
        for start, rows in chunks:
            if start < length:
                whole[start : start + len(rows[name])] = rows[name][: length - start]
        return whole


class TappedChunk(NamedTuple):
    """Tokens of a request from position ``start`` on, which a step computes."""

    tapped: Tapped
    start: int
