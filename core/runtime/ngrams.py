"""No-repeat n-grams: which tokens would complete a run that the text has had. Knows no torch."""

from __future__ import annotations

import secrets
from array import array
from collections.abc import Iterable, Set
from typing import Final

# Of the rolling hash. Its base is drawn for each index, so nobody can aim a collision; that any two of k runs of n tokens
# collide has a probability below k² n / 2**127: 1e-25 for a text of 32,768 tokens.
_PRIME: Final = 2**127 - 1


class NgramIndex:
    """All n-grams of a growing text by a hash of their first n - 1 tokens.

    A token costs the same time (under a microsecond) and about 150 bytes, whatever n and the text's length.

    Args:
        n: tokens of a run that must not occur twice, from 1.
        tokens: the text so far, the prompt included.
    """

    def __init__(self, n: int, tokens: Iterable[int] = ()) -> None:
        self._n = n
        self._base = secrets.randbelow(_PRIME - 2) + 2
        self._leaves = pow(self._base, n - 1, _PRIME)
        self._text = array("i")
        self._last = 0  # hash of the text's last n - 1 tokens, or of all while there are fewer
        self._next: dict[int, int | set[int]] = {}  # hash → the token that followed, or those that did
        for token in tokens:
            self.append(token)

    def append(self, token: int) -> None:
        """The text goes on with ``token``."""
        text, last = self._text, self._last
        text.append(token)
        self._last = last * self._base + token + 1
        if len(text) >= self._n:
            self._follows(last, token)
            self._last -= (text[-self._n] + 1) * self._leaves
        self._last %= _PRIME

    def banned(self) -> Set[int]:
        """Tokens that would complete an n-gram which the text has; a view, valid until the next ``append``."""
        found = self._next.get(self._last, frozenset[int]())
        return {found} if isinstance(found, int) else found

    def _follows(self, run: int, token: int) -> None:
        known = self._next.get(run)
        if known is None:
            self._next[run] = token
        elif isinstance(known, set):
            known.add(token)
        elif known != token:
            self._next[run] = {known, token}
