"""The requests that run, by rank: each has a slot and blocks, and either known tokens still to run or a token to decode."""

from __future__ import annotations

import numpy as np

from bestiary.core.runtime.block_tables import BlockTables
from bestiary.core.runtime.messages import Ints, Opened
from bestiary.core.runtime.request import Request, State
from bestiary.core.runtime.reuse import Hit
from bestiary.core.runtime.slots import Slots


class Running:
    """Who runs.

    Attributes:
        requests: all of them, by rank.
        prompts: those with known tokens still to run, by rank.
        streams: how many of them someone reads along with.
        stale: some began to decode, or left, since :meth:`decoding` was asked.
    """

    def __init__(self, slots: Slots, tables: BlockTables) -> None:
        self._slots, self._tables = slots, tables
        self.requests: list[Request] = []
        self.prompts: list[Request] = []
        self.streams = 0
        self.stale = False
        self._decoding: Ints = np.zeros(0, np.int32)

    def decoding(self) -> Ints:
        """The slots of those that decode."""
        if self.stale:
            prompts = set(map(id, self.prompts))
            chosen = [request.slot for request in self.requests if id(request) not in prompts]
            self._decoding, self.stale = np.array(chosen, np.int32), False
        return self._decoding

    def enter(self, request: Request, hit: Hit, number: int) -> Opened:
        """A request takes a slot and the blocks that were found for it in the step ``number``; what the ranks are told. If
        that fails, it has neither."""
        tokens, slot = request.tokens.copy(), self._slots.open(request, hit.tokens)
        try:
            self._tables.admit(request, hit)
            self._slots.room[slot] = self._tables.room(request)
        except BaseException:
            self._tables.retract(request)
            self._slots.close(request)
            raise
        if request.num_cached is None:
            request.num_cached, request.cache_miss, request.salt_hides = hit.tokens, hit.miss, hit.hidden
        request.admitted, request.began, request.hit = number, len(tokens), hit
        request.state = State.RUNNING
        self.streams += request.streams
        _insert(self.requests, request)
        _insert(self.prompts, request)
        return Opened(slot, hit.tokens, request.prompt_length, tokens, request.params.for_ranks)

    def prompt_done(self, request: Request) -> None:
        """All its known tokens run: from the next step on it decodes."""
        self.prompts.remove(request)
        self.stale = True

    def withdraw(self, request: Request, number: int, *, trusted: bool) -> None:
        """A request gives its slot and blocks back.

        Args:
            number: of the last step.
            trusted: all its keys and values are sound, so that others may have them; else those that are known already.
        """
        if trusted:
            end = int(min(self._slots.stored[request.slot], self._slots.known[request.slot]))
            self._tables.release(request, end, number)
        else:
            self._tables.discard(request)
        self.requests.remove(request)
        if request in self.prompts:
            self.prompts.remove(request)
        self.streams -= request.streams
        self.stale = True
        self._slots.close(request)

    def all_read(self) -> bool:
        """None has a token that is still to be read."""
        slots = [request.slot for request in self.requests if request not in self.prompts]
        return bool((self._slots.known[slots] == self._slots.planned[slots]).all())


def _insert(requests: list[Request], request: Request) -> None:
    """Keep the list ordered by rank; most come last."""
    at = len(requests)
    while at and requests[at - 1].rank > request.rank:
        at -= 1
    requests.insert(at, request)
