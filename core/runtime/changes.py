"""Collects what changes in one cache group's tables between two steps, as the ranks will be told."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from bestiary.core.runtime.messages import EMPTY, Ints, TableChanges

_NONE = TableChanges(EMPTY, EMPTY, EMPTY, EMPTY, EMPTY, EMPTY)


class ChangeLog:
    """Places, copies and scrubs since the last :meth:`drain`. Of two changes to one place the later one counts."""

    def __init__(self) -> None:
        self._placed: dict[tuple[int, int], int] = {}
        self._copied: dict[int, int] = {}
        self._scrubbed: dict[int, None] = {}

    def place(self, slot: int, place: int, block: int) -> None:
        """``tables[slot, place]`` is ``block`` now."""
        self._placed[slot, place] = block

    def copy(self, source: int, target: int) -> None:
        """``target`` starts with the contents of ``source``."""
        self._copied[target] = source

    def scrub(self, block: int) -> None:
        """The block's contents must not be read by anyone."""
        self._scrubbed[block] = None

    def withdraw(self, slot: int, blocks: Iterable[int]) -> None:
        """The places of a slot, and the copies into its blocks, are not wanted after all."""
        self._placed = {where: block for where, block in self._placed.items() if where[0] != slot}
        for block in blocks:
            self._copied.pop(block, None)

    def scrub_all(self, blocks: Iterable[int]) -> None:
        """As :meth:`scrub`, of each."""
        self._scrubbed.update(dict.fromkeys(blocks))

    def drain(self) -> TableChanges:
        """The changes in arrays."""
        if not (self._placed or self._copied or self._scrubbed):
            return _NONE
        where = np.array(list(self._placed), np.int32).reshape(-1, 2)
        changes = TableChanges(
            np.ascontiguousarray(where[:, 0]),
            np.ascontiguousarray(where[:, 1]),
            _array(self._placed.values()),
            _array(self._copied.values()),
            _array(self._copied),
            _array(self._scrubbed),
        )
        self._placed.clear()
        self._copied.clear()
        self._scrubbed.clear()
        return changes


def _array(values: Iterable[int]) -> Ints:
    return np.array(list(values), np.int32)
