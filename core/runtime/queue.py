"""The waiting requests, by rank."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from bestiary.core.runtime.request import Request


class WaitingQueue:
    """Ordered by rank, the lowest first; of equal ranks the first come."""

    def __init__(self) -> None:
        self._requests: list[Request] = []

    def add(self, request: Request) -> None:
        """Let a request wait."""
        insort(self._requests, request, key=_rank)

    def remove(self, request: Request) -> None:
        """Out of the queue, wherever it stands, if it is there."""
        at = bisect_left(self._requests, request.rank, key=_rank)
        while at < len(self._requests) and self._requests[at] is not request:
            at += 1
        del self._requests[at : at + 1]

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    def __len__(self) -> int:
        return len(self._requests)


def _rank(request: Request) -> float:
    return request.rank
