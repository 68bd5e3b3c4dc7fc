"""Which tokens run in the next step, and what its results mean. Integers only: no torch, no tokenizer.

A step runs every decoding request's next token first, then chunks of prompts, then admits waiting requests in the order of
their ranks, within ``max_num_tokens`` tokens and ``max_batch_size`` requests. Steps may be decided before the results of
the one before are read: a request that decodes is known to have one more token, whatever it will be.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from bestiary.core.outputs import FinishReason
from bestiary.core.runtime import policies
from bestiary.core.runtime.admission import Admission, check_fit
from bestiary.core.runtime.batch import Batch, Segment
from bestiary.core.runtime.block_tables import BlockTables
from bestiary.core.runtime.cache_groups import CacheGroup
from bestiary.core.runtime.messages import Ints, Opened
from bestiary.core.runtime.pace import Pace
from bestiary.core.runtime.packing import Packing
from bestiary.core.runtime.queue import WaitingQueue
from bestiary.core.runtime.request import Request, State
from bestiary.core.runtime.reuse import Hit
from bestiary.core.runtime.running import Running
from bestiary.core.runtime.slots import Slots
from bestiary.core.runtime.step_limit import StepLimit


class Scheduler:
    """The queue, the running requests and their blocks.

    Args:
        groups: the engine's cache groups.
        max_batch_size: most requests that run at a time.
        max_num_tokens: most tokens in a step.
        max_seq_len: most tokens of a request.
        max_rows: most rows of logits in a step; None: ``max_num_tokens``.
        prefix_caching: reuse the blocks of equal prefixes.
        capacity, order: names of policies.
        key: secret of the prefix hash chains; random unless given.
        clock: seconds, for cached blocks with a time to live.

    Raises:
        ConfigError: there is no such policy.
    """

    def __init__(
        self,
        groups: Sequence[CacheGroup],
        *,
        max_batch_size: int,
        max_num_tokens: int,
        max_seq_len: int,
        max_rows: int | None = None,
        prefix_caching: bool = True,
        capacity: str = "no-evict",
        order: str = "first-come",
        key: bytes | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # Every running request can have a token in every step, so none waits for a turn.
        self.max_batch_size = min(max_batch_size, max_num_tokens)
        self.limit = StepLimit(self.max_batch_size, max_num_tokens)
        ranks, promise = policies.order(order), policies.capacity(capacity).promise
        self.tables = BlockTables(
            groups,
            max_num_tokens=max_num_tokens,
            prefix_caching=prefix_caching,
            promise=promise,
            key=key,
            clock=clock,
        )
        self.slots = Slots(self.max_batch_size, max_seq_len)
        self._admission = Admission(self.tables, ranks)
        self._running = Running(self.slots, self.tables)
        self.pace = Pace()
        self.number = 0  # of the last step
        self.num_preemptions = 0
        self._max_rows = max_num_tokens if max_rows is None else max_rows
        self._opened: dict[int, Opened] = {}  # by slot, since the last step

    @property
    def max_num_tokens(self) -> int:
        """Most tokens of the next step."""
        return self.limit.tokens

    @property
    def running(self) -> list[Request]:
        """The requests that run, by rank."""
        return self._running.requests

    @property
    def waiting(self) -> WaitingQueue:
        """The requests that wait, by rank."""
        return self._admission.waiting

    @property
    def idle(self) -> bool:
        """Nothing runs and nothing waits."""
        return not self.running and not self.waiting

    def take_failed(self) -> list[tuple[Request, Exception]]:
        """Waiting requests that could not be admitted, and why; they are still to be finished."""
        return self._admission.take_failed()

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises:
            RequestError: it could not run even alone.
        """
        self.admissible(request)
        self._admission.add(request)

    def admissible(self, request: Request) -> None:
        """Work out what the request needs.

        Raises:
            RequestError: more than there is; the message shows the arithmetic.
        """
        request.cap = self.tables.caps(request)
        check_fit(request, self.tables.groups)

    def decide(self) -> Batch | None:
        """The next step; None if nothing can run before the results of earlier steps are read, or nothing is there.

        Its tokens count as stored from now on, and its blocks are taken.
        """
        self.number += 1
        pack = Packing(self.slots, self.max_num_tokens, self._max_rows)
        decodes = self._decodes()
        pack.decode(decodes)
        prompt_tokens = self.pace.chunk() if self._running.streams and len(decodes) else self.max_num_tokens
        for request in list(self._running.prompts):
            prompt_tokens -= self._chunk(pack, request, prompt_tokens)
        while prompt_tokens > 0 and pack.budget > 0 and (admitted := self._admit()) is not None:
            prompt_tokens -= self._chunk(pack, admitted, prompt_tokens)
        if pack.empty and self.running and self._running.all_read():
            self._make_progress(pack)
        if pack.empty:
            return None
        opened, self._opened = tuple(self._opened.values()), {}
        return pack.batch(self.number, opened, self.tables.drain())

    def _decodes(self) -> Ints:
        """The slots that run their last token, with room for it."""
        slots, live = self.slots, self._running.decoding()
        if not len(live):
            return live
        ready = slots.planned[live] < slots.limit[live]
        if not ready.all():
            live = live[ready]
        short = live[slots.planned[live] > slots.room[live]]
        if len(short):
            live = self._extend(live, short)
        slots.stored[live] = slots.planned[live]
        slots.planned[live] += 1
        return live

    def _extend(self, live: Ints, short: Ints) -> Ints:
        """A block for the next token of each of ``short``, by rank; who must give up his for it does not run."""
        slots = self.slots
        needy = [request for slot in short.tolist() if (request := slots.requests[slot]) is not None]
        for request in sorted(needy, key=_rank):
            if request.state is not State.RUNNING:
                continue  # preempted for one before it
            end = int(slots.planned[request.slot])
            self.tables.leave_behind(request, end - 1)
            while (room := self.tables.grow(request, end)) < end and self.running[-1] is not request:
                self._preempt(self.running[-1])
            if room < end:
                self._preempt(request)
            else:
                slots.room[request.slot] = room
        if self._running.stale:  # some were preempted
            live = np.array([slot for slot in live.tolist() if slots.requests[slot] is not None], np.int32)
        return live

    def _chunk(self, pack: Packing, request: Request, most: int) -> int:
        """Run as many of a request's known tokens as the budgets and its blocks allow; how many that are."""
        slots, slot = self.slots, request.slot
        start, known = int(slots.stored[slot]), int(slots.known[slot])
        count = pack.most(request, start, min(known - start, most))
        if count <= 0:
            return 0
        self.tables.leave_behind(request, start)
        room = self.tables.grow(request, start + count)
        slots.room[slot] = room
        count = min(count, room - start)
        if count <= 0:
            return 0
        end = start + count
        slots.stored[slot] = end
        slots.boundary[slot] = self.tables.stored(request, end, self.number)
        pack.chunk(Segment(request, start, count, samples=end == known))
        if request.prompt_step == 0 and end >= request.prompt_length:
            request.prompt_step = self.number
        if end == known:
            slots.planned[slot] = known + 1
            self._running.prompt_done(request)
        return count

    def _admit(self) -> Request | None:
        """Let the first waiting request that can run do so, if it fits."""
        return self._admission.next(self.number, len(self.running), self._enter) if self.slots.num_free else None

    def _enter(self, request: Request, hit: Hit) -> None:
        self.pace.admitted()
        opened = self._running.enter(request, hit, self.number)
        self._opened[opened.slot] = opened

    def distrust(self, number: int) -> list[Request]:
        """The step ``number`` failed: nobody gets what was stored in it and later. The requests that may stand on it already,
        because they were admitted since."""
        self.tables.forget_since(number)
        return [request for request in self.running if request.admitted >= number]

    def repeat(self, request: Request) -> None:
        """What a request stored or took over can't be used: compute it anew."""
        if request.state is State.RUNNING:
            self._preempt(request, trusted=False)

    def _preempt(self, request: Request, trusted: bool = True) -> None:
        """Take a running request's blocks; it waits, at its rank, to be computed anew."""
        self._running.withdraw(request, self.number, trusted=trusted)
        request.preemptions += 1
        request.prompt_step = 0
        self.num_preemptions += 1
        request.state = State.WAITING
        self.waiting.add(request)

    def _make_progress(self, pack: Packing) -> None:
        """Prompts hold all blocks and none can go on: the last ones give theirs up until the first can."""
        first = self.running[0]
        while self._chunk(pack, first, self.max_num_tokens) == 0 and len(self.running) > 1:
            self._preempt(self.running[-1])

    def land(self, batch: Batch, tokens: Ints) -> list[Request]:
        """Take in a step's results.

        Args:
            tokens: [n] of ``batch.slots``; -1 for a row that gave none.

        Returns:
            The requests that their token ended, by an end token, ``max_tokens`` or the context's length. Tokens of requests
            that are over or were preempted since the step was decided are dropped.
        """
        slots = self.slots
        self.limit.good()
        alive = (slots.epoch[batch.slots] == batch.epochs) & (tokens >= 0)
        chosen, fresh = (batch.slots, tokens) if alive.all() else (batch.slots[alive], tokens[alive])
        known = slots.known[chosen]
        slots.tokens[chosen, known] = fresh
        slots.known[chosen] = known + 1
        full = (known >= slots.boundary[chosen]).nonzero()[0]
        for index in full.tolist():
            request = slots.requests[chosen[index]]
            assert request is not None
            slots.boundary[request.slot] = self.tables.stored(request, int(known[index]), batch.number)
        return self._ended(chosen, fresh)

    def _ended(self, slots: Ints, tokens: Ints) -> list[Request]:
        over = self.slots.known[slots] >= self.slots.limit[slots]
        over |= np.isin(tokens, self.slots.end_tokens)
        ended = []
        for index in over.nonzero()[0].tolist():
            request, token = self.slots.requests[slots[index]], int(tokens[index])
            assert request is not None
            params = request.params
            if token in params.end_token_ids and request.num_output > params.min_tokens:
                self.finish(request, "stop", token if token in params.stop_token_ids else None)
            elif len(request.tokens) >= request.max_length:
                self.finish(request, "length")
            else:
                continue
            ended.append(request)
        return ended

    def finish(
        self,
        request: Request,
        reason: FinishReason,
        stop_reason: int | str | None = None,
        *,
        trusted: bool = True,
    ) -> bool:
        """End a request in any state and take its blocks back; False if it had ended already.

        Args:
            trusted: all its keys and values are sound; else no later request gets more of them than is known already.
        """
        if request.state is State.FINISHED:
            return False
        if request.state is State.RUNNING:
            self._running.withdraw(request, self.number, trusted=trusted)
        else:
            self._admission.remove(request)
        request.state = State.FINISHED
        request.finish_reason, request.stop_reason = reason, stop_reason
        request.sibling = None
        return True

    def reset_prefix_cache(self) -> None:
        """Forget every prefix; running requests go on, and offer nothing to later ones."""
        self.tables.reset(self.running)

    def check(self) -> None:
        """Raise EngineError unless all blocks are accounted for."""
        self.tables.check(self.running, [int(self.slots.stored[r.slot]) for r in self.running])


def _rank(request: Request) -> float:
    return request.rank
