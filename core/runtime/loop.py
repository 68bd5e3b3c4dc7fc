"""The engine loop: decide, launch, read, take in, choose. Token ids only; what text needs is asked of each request's answer.

Where the executor overlaps, step n + 1 is decided and its forward launched before the tokens of step n are read; they are
read while it runs, so that grammars, n-grams and logits processors know them before the tokens of step n + 1 are chosen.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from bestiary.core.errors import EngineError
from bestiary.core.outputs import FinishReason
from bestiary.core.runtime.answers import Answer
from bestiary.core.runtime.batch import Batch
from bestiary.core.runtime.containment import cause, contained
from bestiary.core.runtime.doubt import condemn
from bestiary.core.runtime.endings import Endings
from bestiary.core.runtime.executor import Executor, Pending
from bestiary.core.runtime.messages import Ints, SampledMessage
from bestiary.core.runtime.pulse import Pulse
from bestiary.core.runtime.request import Request
from bestiary.core.runtime.restrictions import Guide
from bestiary.core.runtime.scheduler import Scheduler
from bestiary.core.runtime.slow_calls import SlowCalls
from bestiary.core.runtime.stats import EngineStats, Meters, snapshot
from bestiary.core.runtime.steps import StepRecorder

log = logging.getLogger("bestiary.runtime.loop")

_NOTHING = SampledMessage(np.zeros(0, np.int32))


class _Flight(NamedTuple):
    """A step that was launched; ``pending`` is None where nothing is to be read of it. ``asked``: see ``Answers.added``."""

    batch: Batch
    pending: Pending | None
    asked: Ints | None


class EngineLoop:
    """Runs requests. Every submitted request ends exactly once, by its own end, ``abort``, or an error.

    Args:
        executor: runs the steps.
        scheduler: holds the requests and their blocks.
        vocab_size: width of the logits.

    Attributes:
        pulse: which step is under way and since when.
        recorder: keeps what each step held, where someone put one here between two steps.
    """

    def __init__(self, executor: Executor, scheduler: Scheduler, *, vocab_size: int) -> None:
        self.executor, self.scheduler = executor, scheduler
        self.meters, self.pulse, self.slow_calls = Meters(), Pulse(), SlowCalls()
        self.recorder: StepRecorder | None = None
        self._endings = Endings(executor, scheduler, self.meters, self.slow_calls, vocab_size=vocab_size)
        self._given_up: EngineError | None = None  # by another thread, while a step hung
        self._flight: _Flight | None = None
        self._landed_at: float | None = None  # while steps follow each other: none where nothing was left to do
        self._host = 0.0  # seconds of the host's own work since the last step was read

    @property
    def idle(self) -> bool:
        """No request is under way."""
        return not self._endings.answers

    @property
    def failure(self) -> EngineError | None:
        """What ended the engine for good."""
        return self.executor.failure

    def submit(self, request: Request, answer: Answer, guide: Guide | None = None) -> None:
        """Queue a request. If what the host does for it fails, that ends it, and nothing is raised.

        Args:
            guide: at the start of the grammar that its answer must match.

        Raises:
            RequestError: it can never fit the KV cache.
            EngineError: the engine is dead, or another request of this id is under way.
        """
        self.refuse_if_dead()
        if request in self._endings.answers:
            raise EngineError("E-RUN-ID", f"request {request.id}", "another request of this id is under way")
        self._endings.begin(request, answer, guide)

    def refuse(self, request: Request, answer: Answer, error: BaseException) -> None:
        """End a request with what kept its job from beginning, whether it is under way itself or not."""
        if request in self._endings.answers:
            self._end_between(request, "error", cause(error))
        else:
            self._endings.refuse(request, answer, error)

    def refuse_if_dead(self) -> None:
        """Raise what ended the engine, if anything did."""
        failure = self.executor.failure
        if failure is not None:
            raise EngineError(
                "E-RUN-DEAD",
                "engine",
                "takes no requests any more",
                found=str(failure),
                hint="load it again",
            ) from failure

    def step(self) -> list[Request]:
        """Launch a step and take in the one before, or this one where the executor does not overlap.

        Returns:
            The requests that ended. A step that fails ends its requests with an error, and the others go on.

        Raises:
            EngineError: the engine is dead; every request has ended with an error that says by what. What nobody
                contains, such as an error in the scheduler, leaves a state that nobody knows, so it ends the engine too.
        """
        self.pulse.begin(None if self._flight is None else self._flight.batch)
        try:
            self._advance()
        except BaseException as error:
            log.error("the engine loop failed: %s", error, exc_info=error)
            broken = error if isinstance(error, EngineError) else _broken(error)
            self.executor.failure = self.executor.failure or broken
            if isinstance(error, KeyboardInterrupt):
                with suppress(EngineError):
                    self._bury()
                raise
        finally:
            self.pulse.end()
        self._bury()
        ended, self._endings.ended = self._endings.ended, []
        return ended

    def _advance(self) -> None:
        started = time.perf_counter()
        batch = self.scheduler.decide()
        for request, error in self.scheduler.take_failed():
            self._endings.blame(request, error)
        self._host += time.perf_counter() - started
        if batch is not None:
            self.pulse.launches(batch)
        launched = batch is not None and self._launch(batch)
        self._go_on()
        if self._flight is not None:
            self._land(self._flight)
        elif batch is None and not self.scheduler.idle:
            raise EngineError("E-RUN-STALL", "scheduler", "requests wait though nothing runs")
        if batch is not None and launched:
            self._choose(batch)
            if not self.executor.overlaps and self._flight is not None:
                self._land(self._flight)
        self._perhaps_idle()

    def drain(self) -> list[Request]:
        """Step until nothing is left; the requests that ended, in that order."""
        ended: list[Request] = []
        while not self.idle:
            ended += self.step()
        return ended

    def abort(self, request: Request) -> bool:
        """End a request in any state; False if it had ended already."""
        return self._end_between(request, "abort")

    def _end_between(self, request: Request, reason: FinishReason, found: str | None = None) -> bool:
        """End a request that no step ended, and that none need tell of: perhaps within one, in the end of another."""
        if not self._endings.finish(request, reason, found):
            return False
        self._endings.ended.remove(request)
        self._perhaps_idle()
        return True

    def abort_all(self) -> None:
        """End every request."""
        for request in [*self.scheduler.running, *self.scheduler.waiting]:
            self.abort(request)

    def give_up(self, error: EngineError) -> None:
        """The step under way does not end: the engine is dead, and everyone is told. Called by another thread than the one
        that is in the step, which changes nothing any more should it ever come back."""
        self._given_up = self.executor.failure = self.executor.failure or error
        self.executor.abandon()
        self._endings.give_up(self._given_up)

    def stats(self) -> EngineStats:
        """Figures of this moment."""
        return snapshot(self.meters, self.scheduler, self.pulse, self.slow_calls)

    def _perhaps_idle(self) -> None:
        """Where nothing is left, the time until the next request comes is no step's, whatever is in flight."""
        if self.scheduler.idle:
            self._landed_at = None

    def _go_on(self) -> None:
        """After whatever may hang: leave the step if it was given up."""
        if self._given_up is not None:
            raise self._given_up

    def _launch(self, batch: Batch) -> bool:
        """Start a step's forward; False if that failed, which ends its requests."""
        try:
            self.executor.forward(batch.message)
        except BaseException as error:
            contained(error)
            if self._flight is not None:  # what is there already is sound
                self._land(self._flight)
            self._fail(batch, error)
            self.scheduler.tables.scrub_again(batch.message.tables)
            return False
        return True

    def _choose(self, batch: Batch) -> None:
        """Start the choice of a step's tokens."""
        started = time.perf_counter()
        wanted, failed = self._endings.restrictions.ask(batch, self.scheduler.slots)
        self._go_on()
        for request, error in failed:
            self._endings.blame(request, error)
        self._host += time.perf_counter() - started
        pending = None
        if len(wanted.slots) or wanted.scored or batch.tapped:
            try:
                pending = self.executor.sample(wanted)
            except BaseException as error:
                self._fail(batch, contained(error))
                return
            self._go_on()
        self._flight = _Flight(batch, pending, wanted.logprobs)

    def _land(self, flight: _Flight) -> None:
        """Read a step's results and take them in."""
        self._flight, batch = None, flight.batch
        try:
            sampled = _NOTHING if flight.pending is None else flight.pending.read()
        except BaseException as error:
            self._fail(batch, contained(error))
            return
        self._go_on()
        self.pulse.landed(batch)
        now, started = time.monotonic(), time.perf_counter()
        if self.recorder is not None:
            since = None if self._landed_at is None else now - self._landed_at
            self.recorder.saw(batch, self.scheduler, now, since)
        self._take_in(batch, sampled, flight.asked, now)
        self._host += time.perf_counter() - started
        self._count(batch, now)

    def _take_in(self, batch: Batch, sampled: SampledMessage, asked: Ints | None, now: float) -> None:
        slots = self.scheduler.slots
        for chunk, rows in zip(batch.tapped, sampled.taps, strict=True):
            chunk.tapped.add(chunk.start, rows)
        alive = slots.epoch[batch.slots] == batch.epochs
        if len(sampled.tokens) and int(sampled.tokens.min()) < 0:
            for row in ((sampled.tokens < 0) & alive).nonzero()[0].tolist():
                owner = slots.requests[batch.slots[row]]
                if owner is not None:
                    self._endings.unusable(owner, sampled.errors.get(row))
                alive[row] = False
        self.meters.output_tokens += int(alive.sum())
        for call in sampled.slow_calls:
            owner = slots.requests[batch.slots[call.row]]
            if alive[call.row] and owner is not None:
                self.slow_calls.saw(call.plugin, owner.id, call.seconds)
        answers = self._endings.answers
        answers.prompt_scored(batch, sampled.scored)
        watched = [
            (row, request)
            for row in (slots.watched[batch.slots] & alive).nonzero()[0].tolist()
            if (request := slots.requests[batch.slots[row]]) is not None
        ]
        for request in self.scheduler.land(batch, sampled.tokens):
            self._endings.ended.append(request)
        for request in batch.landed(alive):
            if request.num_output == 1:
                self.meters.began(request)
                answers.first_token(request, now)
            if request.suspects:
                condemn(self.scheduler, request)
        answers.added(watched, asked, sampled.logprobs)
        for request in self._endings.ended:
            self._endings.tell(request, now)

    def _count(self, batch: Batch, now: float) -> None:
        self.meters.steps += 1
        if self._landed_at is not None:
            whole = now - self._landed_at
            self.meters.times.append((whole, self._host))
            self.scheduler.pace.saw(batch.message.decodes, batch.prompt_tokens, whole)
        self._landed_at, self._host = now, 0.0

    def _fail(self, batch: Batch, error: BaseException) -> None:
        """A step failed."""
        self._endings.fail(batch, error)
        self._landed_at = None

    def _bury(self) -> None:
        """If the executor is dead, end everything and say so."""
        failure = self.executor.failure
        if failure is not None:
            self._flight = None
            self._endings.bury(failure)
            raise failure


def _broken(error: BaseException) -> EngineError:
    return EngineError("E-RUN-LOOP", "engine loop", "failed", found=f"{type(error).__name__}: {error}")
