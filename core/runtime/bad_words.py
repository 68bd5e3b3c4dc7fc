"""Bad words: which tokens would complete a forbidden sequence. Knows no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class BadWords:
    """Forbidden token sequences, by the token before their last.

    Args:
        sequences: each of at least one token.
    """

    def __init__(self, sequences: Iterable[Sequence[int]]) -> None:
        self._always: set[int] = set()
        self._after: dict[int, list[tuple[tuple[int, ...], int]]] = {}
        for sequence in sequences:
            *before, last = sequence
            if before:
                self._after.setdefault(before[-1], []).append((tuple(before), last))
            else:
                self._always.add(last)

    def banned(self, text: Sequence[int]) -> set[int]:
        """Tokens that, after ``text``, would complete a sequence; the text is prompt and answer together.

        Those of one token are always banned.
        """
        banned = set(self._always)
        for before, last in self._after.get(text[-1], ()) if text else ():
            if tuple(text[-len(before) :]) == before:
                banned.add(last)
        return banned
