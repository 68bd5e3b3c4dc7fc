"""No-repeat n-grams: which tokens would complete a run that the text has had. Knows no torch."""

from __future__ import annotations

from collections.abc import Iterable, Set


class NgramIndex:
    """All n-grams of a growing text by their first n - 1 tokens.

    A token costs the time to make one tuple of n - 1 tokens, whatever the text's length.

    Args:
        n: tokens of a run that must not occur twice, from 1.
        tokens: the text so far, the prompt included.
    """

    def __init__(self, n: int, tokens: Iterable[int] = ()) -> None:
        self._n = n
        self._last: tuple[int, ...] = ()  # the text's last n - 1 tokens, or all while there are fewer
        self._next: dict[tuple[int, ...], set[int]] = {}
        for token in tokens:
            self.append(token)

    def append(self, token: int) -> None:
        """The text goes on with ``token``."""
        if len(self._last) == self._n - 1:
            self._next.setdefault(self._last, set()).add(token)
            self._last = (*self._last, token)[1:]
        else:
            self._last = (*self._last, token)

    def banned(self) -> Set[int]:
        """Tokens that would complete an n-gram which the text has; a view, valid until the next ``append``."""
        return self._next.get(self._last, frozenset())
