"""What the host knows of the running requests: an array a fact, a place a request. Imports no torch.

Steady decoding touches these arrays only; a request's own object is looked at when something happens to it.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from bestiary.core.runtime.messages import EMPTY, Ints

if TYPE_CHECKING:
    from bestiary.core.runtime.request import Request

_NEVER = np.iinfo(np.int32).max


class Slots:
    """The arrays, by slot.

    Attributes:
        tokens: [S, L] ids.
        known: tokens that the host has read, prompt included.
        planned: tokens there will be once the launched steps are read.
        stored: tokens whose keys and values the launched steps have stored.
        room: tokens that the blocks it holds can take.
        limit: most tokens it may reach.
        boundary: tokens whose keys and values fill the next block of some cache group.
        epoch: how often the slot has changed hands; tells a step's tokens for an earlier owner.
        plain, restricted, watched, scored: see :class:`Request`; the last is that log-probabilities are wanted.
        tapped: it keeps tensors of its tokens; ``num_tapped`` counts such slots.
        end_tokens: every token that ends some running request.
        requests: the owners.
    """

    def __init__(self, count: int, max_seq_len: int) -> None:
        self.count = count
        self.tokens = np.zeros((count, max_seq_len + 1), np.int32)
        self.known, self.planned, self.stored = (np.zeros(count, np.int32) for _ in range(3))
        self.room, self.limit, self.epoch = (np.zeros(count, np.int32) for _ in range(3))
        self.boundary = np.full(count, _NEVER, np.int32)
        self.plain, self.restricted, self.watched, self.scored = (np.zeros(count, bool) for _ in range(4))
        self.tapped, self.num_tapped = np.zeros(count, bool), 0
        self.requests: list[Request | None] = [None] * count
        self.end_tokens: Ints = EMPTY
        self._free = list(range(count - 1, -1, -1))
        self._ends: Counter[int] = Counter()

    @property
    def num_free(self) -> int:
        return len(self._free)

    def open(self, request: Request, stored: int) -> int:
        """Put a request whose first ``stored`` tokens are in its blocks into a free slot."""
        tokens = request.tokens
        slot = self._free[-1]  # taken when nothing can fail any more
        self.tokens[slot, : len(tokens)] = tokens
        self.known[slot] = self.planned[slot] = len(tokens)
        self.stored[slot] = stored
        self.limit[slot] = request.max_length
        self.boundary[slot] = _NEVER
        self.plain[slot], self.restricted[slot] = request.plain, request.restricted
        self.watched[slot], self.scored[slot] = request.watched, request.params.logprobs is not None
        self.tapped[slot] = request.tapped is not None
        self._free.pop()
        self.epoch[slot] += 1
        self.num_tapped += request.tapped is not None
        self.requests[slot] = request
        request.enter(self, slot)
        self._count_ends(request, 1)
        return slot

    def close(self, request: Request) -> None:
        """Free a request's slot; tokens of steps in flight for it will be dropped."""
        slot = request.slot
        request.leave()
        self.epoch[slot] += 1
        self.num_tapped -= request.tapped is not None
        self.requests[slot] = None
        self._free.append(slot)
        self._count_ends(request, -1)

    def known_tokens(self, slot: int) -> Ints:
        """The tokens of a slot, a view."""
        return self.tokens[slot, : self.known[slot]]

    def _count_ends(self, request: Request, by: int) -> None:
        changed = False
        for token in request.params.end_token_ids:
            self._ends[token] += by
            changed |= self._ends[token] == (1 if by > 0 else 0)
            if not self._ends[token]:
                del self._ends[token]
        if changed:
            self.end_tokens = np.array(list(self._ends), np.int32)
