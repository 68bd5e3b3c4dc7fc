"""A model whose next token is a checksum of all its own cache contents and positions, read through the block tables.

Any stale, shifted, foreign, zeroed or poisoned slot changes its output. Here are its ranks, an executor of them, and an
engine around both; ``canary_numbers`` has the arithmetic. No torch: ``canary_model`` is the same as a model plugin.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from canary_numbers import PRIME, VOCAB, alone, first_seen, key, params, score, term, value

from bestiary.core.errors import EngineError
from bestiary.core.outputs import LogprobDict
from bestiary.core.runtime.cache_groups import CacheGroup
from bestiary.core.runtime.loop import EngineLoop
from bestiary.core.runtime.messages import Logprobs, SampledMessage, SampleMessage, Scored, StepMessage
from bestiary.core.runtime.request import Request
from bestiary.core.runtime.scheduler import Scheduler


class Rank:
    """A rank's state by slot and its paged cache, changed by messages in the order in which real ranks do it."""

    def __init__(self, groups: Sequence[CacheGroup], slots: int, max_seq_len: int) -> None:
        self.groups = tuple(groups)
        self.last, self.stored = np.zeros(slots, np.int64), np.zeros(slots, np.int64)
        self.tables = [np.full((slots, -(-max_seq_len // g.block_size)), g.num_blocks) for g in groups]
        self.keys = [np.full((g.num_blocks + 1, g.block_size), math.nan) for g in groups]
        self.values = [np.full((g.num_blocks + 1, g.block_size), math.nan) for g in groups]
        self.writes = 0
        self.sums: list[float] = []  # of the last step's rows

    def forward(self, message: StepMessage) -> None:
        for one in message.opened:
            self.stored[one.slot] = one.stored
        for g, changes in enumerate(message.tables):
            for cache in (self.keys[g], self.values[g]):
                cache[changes.scrubbed] = 0
                cache[changes.targets] = cache[changes.sources]
            self.tables[g][changes.slots, changes.places] = changes.blocks
        given = iter(message.tokens.tolist())
        sums: list[float] = []
        for n, (slot, count) in enumerate(zip(message.slots.tolist(), message.counts.tolist(), strict=True)):
            assert count > 0, "an empty sequence"
            tokens = [int(self.last[slot])] if n < message.decodes else [next(given) for _ in range(count)]
            sums += self._sequence(slot, tokens)
        rows = np.cumsum(message.counts) - 1 if message.rows is None else message.rows
        self.sums = [sums[row] for row in rows.tolist()]

    def _sequence(self, slot: int, tokens: list[int]) -> list[float]:
        """Store the tokens, each layer all of them before any is read; the checksum of each."""
        start = int(self.stored[slot])
        end = self.stored[slot] = start + len(tokens)
        sums = [0.0] * len(tokens)
        for g, group in enumerate(self.groups):
            places = np.arange(first_seen(group.window, start) if start else 0, end)
            blocks, offsets = self.tables[g][slot, places // group.block_size], places % group.block_size
            assert (blocks[start - end :] < group.num_blocks).all(), f"slot {slot} writes outside its blocks"
            before = float(self.keys[g][blocks[start - end - 1], offsets[start - end - 1]]) if start else 0.0
            for at, token in enumerate(tokens, start - end):
                before = key(before, token, int(places[at]), g)
                self.keys[g][blocks[at], offsets[at]] = before
                self.values[g][blocks[at], offsets[at]] = value(before, int(places[at]))
                self.writes += 1
            terms = term(self.keys[g][blocks, offsets], self.values[g][blocks, offsets], places)
            for row, position in enumerate(range(start, end)):
                first = first_seen(group.window, position) - int(places[0])
                sums[row] += float(terms[first : position + 1 - int(places[0])].sum())
        return [total % PRIME for total in sums]

    def sample(self, wanted: SampleMessage) -> SampledMessage:
        rows = range(len(wanted.slots)) if wanted.rows is None else wanted.rows.tolist()
        chosen = [self.sums[row] for row in rows]
        tokens = np.array([-1 if math.isnan(one) else int(one) for one in chosen], np.int32)
        self.last[wanted.slots] = tokens.clip(0)
        return SampledMessage(tokens, scored=tuple(self._scored(one) for one in wanted.scored))

    def _scored(self, wanted: Scored) -> Logprobs:
        targets = wanted.targets.tolist()
        found = [score(self.sums[wanted.first + at], target) for at, target in enumerate(targets)]
        none = np.zeros((len(targets), wanted.best))
        ones = np.ones(len(targets), np.int32)
        return Logprobs(np.array(found, np.float32), ones, none.astype(np.int32), none.astype(np.float32))

    def spoil(self, message: StepMessage) -> None:
        """What the step has stored is wrong: finite, so that only an answer shows it."""
        for slot, count in zip(message.slots.tolist(), message.counts.tolist(), strict=True):
            places = np.arange(self.stored[slot] - count, self.stored[slot])
            for g, group in enumerate(self.groups):
                where = self.tables[g][slot, places // group.block_size], places % group.block_size
                self.keys[g][where] = self.values[g][where] = 7

    def poison(self, group: int, blocks: Iterable[int]) -> None:
        """Whoever reads one of these blocks gets no token."""
        where = list(blocks)
        self.keys[group][where] = self.values[group][where] = math.nan


class CanaryExecutor:
    """Runs steps on a :class:`Rank`. Where it overlaps, nothing runs before a result of it is read.

    Args:
        broken: numbers of the steps whose forward raises.

    Attributes:
        faults: numbers of steps, and which call of theirs fails: ``"forward"``, ``"sample"`` or ``"read"``. What such a step
            stores is wrong.
        error: what they raise.
    """

    takes_functions = True

    def __init__(
        self, groups: Sequence[CacheGroup], slots: int, max_seq_len: int, *, overlaps: bool, broken: Iterable[int] = ()
    ) -> None:
        self.rank, self.overlaps = Rank(groups, slots, max_seq_len), overlaps
        self.failure: EngineError | None = None
        self.faults = dict.fromkeys(broken, "forward")
        self.error: type[Exception] = RuntimeError
        self.steps: list[StepMessage] = []
        self._launched: list[Callable[[], object]] = []

    def forward(self, step: StepMessage) -> None:
        if self.faults.get(step.number) == "forward":
            raise self.error("a kernel failed")
        changed = {
            *(one.slot for one in step.opened),
            *(slot for group in step.tables for slot in group.slots.tolist()),
        }
        assert changed <= set(step.slots.tolist()), "a step changes what another one's requests have"
        self.steps.append(step)
        self._launch(lambda: self.rank.forward(step))

    def sample(self, wanted: SampleMessage) -> _Pending:
        step = self.steps[-1]
        fault = self.faults.get(step.number)
        if fault:
            self._launch(lambda: self.rank.spoil(step))
        if fault == "sample":
            raise self.error("the choice failed")
        pending = _Pending(self, wanted, self.error("the read failed") if fault == "read" else None)
        self._launch(pending.run)
        return pending

    def poison(self, scheduler: Scheduler) -> None:
        """Break what the blocks hold that are free now, once the steps launched so far have run."""
        for g, pool in enumerate(scheduler.tables.pools):
            self._launch(lambda g=g, blocks=list(pool._free): self.rank.poison(g, blocks))  # type: ignore[misc]

    def catch_up(self) -> None:
        """Run all that was launched."""
        launched, self._launched = self._launched, []
        for each in launched:
            each()

    def report(self) -> None:
        pass

    def abandon(self) -> None:
        pass

    def close(self) -> None:
        self.failure = EngineError("E-RUN-CLOSED", "engine", "it has been closed")

    def _launch(self, run: Callable[[], object]) -> None:
        self._launched.append(run)
        if not self.overlaps:
            self.catch_up()

    def until(self, run: Callable[[], object]) -> None:
        """Run what was launched, ``run`` the last of it."""
        while run in self._launched:
            self._launched.pop(0)()


class _Pending:
    def __init__(self, executor: CanaryExecutor, wanted: SampleMessage, error: Exception | None = None) -> None:
        self._executor, self._wanted, self._error = executor, wanted, error
        self._found: SampledMessage | None = None

    def run(self) -> None:
        self._found = self._executor.rank.sample(self._wanted)

    def read(self) -> SampledMessage:
        self._executor.until(self.run)
        if self._error is not None:
            raise self._error
        assert self._found is not None
        return self._found


class Recorder:
    """An answer that only counts what it is told; ``fails`` names the method that raises."""

    def __init__(self, *, watches: bool = False, fails: str | None = None) -> None:
        self.watches, self.fails = watches, fails
        self.tokens = self.firsts = self.ends = 0
        self.scores: list[float] = []

    def first_token(self, now: float) -> None:
        self.firsts += 1
        self._maybe("first_token")

    def prompt_scored(self, entries: list[LogprobDict]) -> None:
        self.scores += [next(iter(entry.values())).logprob for entry in entries]
        self._maybe("prompt_scored")

    def added(self, logprobs: LogprobDict | None) -> str | None:
        self.tokens += 1
        if self.tokens == 2:
            self._maybe("added")
        return None

    def end(self, now: float) -> None:
        self.ends += 1
        self._maybe("end")

    def _maybe(self, method: str) -> None:
        if method == self.fails:
            raise ValueError("no such piece")


class Engine:
    """A loop over a canary, and what was submitted to it."""

    def __init__(
        self,
        groups: Sequence[CacheGroup] = (CacheGroup(32, 4),),
        *,
        batch: int = 8,
        tokens: int = 64,
        max_seq_len: int = 128,
        overlaps: bool = False,
        broken: Iterable[int] = (),
        pace: int | None = None,
        **options: Any,
    ) -> None:
        self.groups, self.max_seq_len = tuple(groups), max_seq_len
        self.looks = True  # check looks at the rank, which lets it catch up
        self.scheduler = Scheduler(
            groups,
            max_batch_size=batch,
            max_num_tokens=tokens,
            max_seq_len=max_seq_len,
            **{"key": b"k", **options},
        )
        if pace is not None:  # prompt tokens beside a stream, in place of what a clock says
            self.scheduler.pace.chunk = lambda: pace  # type: ignore[method-assign]
        self.executor = CanaryExecutor(
            groups, self.scheduler.slots.count, max_seq_len, overlaps=overlaps, broken=broken
        )
        self.loop = EngineLoop(self.executor, self.scheduler, vocab_size=VOCAB)
        self.requests: list[Request] = []
        self.answers: dict[str, Recorder] = {}

    def submit(
        self,
        prompt: Sequence[int],
        max_tokens: int = 4,
        *,
        name: str | None = None,
        answer: Recorder | None = None,
        sibling: Request | None = None,
        streams: bool = False,
        **said: object,
    ) -> Request:
        made = Request(
            name or str(len(self.requests)),
            prompt,
            params(max_tokens=max_tokens, **said),
            max_seq_len=self.max_seq_len,
            sibling=sibling,
            streams=streams,
        )
        answer = answer or Recorder(watches=streams)
        self.loop.submit(made, answer)
        self.requests.append(made)
        self.answers[made.id] = answer
        return made

    def step(self, *, poison: bool = False) -> StepMessage | None:
        """One step, with everything checked after it; its message, if one was launched."""
        before = len(self.executor.steps)
        self.loop.step()
        if poison:
            self.executor.poison(self.scheduler)
        self.check()
        return self.executor.steps[-1] if len(self.executor.steps) > before else None

    def drain(self, *, poison: bool = False, most: int = 2000) -> list[StepMessage]:
        """Step to the end; what ran."""
        steps = []
        for _ in range(most):
            if self.loop.idle:
                break
            message = self.step(poison=poison)
            if message is not None:
                steps.append(message)
        assert self.loop.idle, f"{len(self.scheduler.running)} running and {len(self.scheduler.waiting)} waiting remain"
        return steps

    def check(self) -> None:
        """Blocks are accounted for, and the rank's slots are what the host thinks they are."""
        self.scheduler.check()
        if self.looks:
            self.executor.catch_up()
            self._check_rank()

    def _check_rank(self) -> None:
        scheduler, rank = self.scheduler, self.executor.rank
        pending = set(scheduler._opened)
        for request in scheduler.running:
            slot = request.slot
            if slot not in pending:
                assert rank.stored[slot] == scheduler.slots.stored[slot], f"{request}: another length on the rank"
            for g, table in enumerate(request.blocks):
                shown = rank.tables[g][slot, : len(table)].tolist()
                for (of, place), block in scheduler.tables._changes[g]._placed.items():
                    if of == slot and place < len(shown):
                        shown[place] = block
                held = [(place, block) for place, block in enumerate(table) if block >= 0]
                assert held == [(place, shown[place]) for place, _ in held], f"{request}: another table on the rank"

    def check_drained(self) -> None:
        """Nothing is left of any request."""
        scheduler = self.scheduler
        assert not scheduler.running and not scheduler.waiting and self.loop.idle
        assert scheduler.slots.num_free == scheduler.slots.count
        assert all(pool.num_used == 0 for pool in scheduler.tables.pools)
        assert scheduler.tables._promised == [0] * len(self.groups)
        assert all(answer.ends == 1 for answer in self.answers.values()), "not exactly one end each"
        assert sum(self.loop.meters.finished.values()) == len(self.requests)

    def expected(self, request: Request) -> list[int]:
        """What the request gives when nobody disturbs it."""
        return alone(self.groups, request.prompt, request.max_length - request.prompt_length)
