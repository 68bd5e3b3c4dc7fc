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
from bestiary.core.runtime.answers import Answer, Answers
from bestiary.core.runtime.batch import Batch
from bestiary.core.runtime.containment import contained
from bestiary.core.runtime.executor import Executor, Pending
from bestiary.core.runtime.messages import Ints, SampledMessage
from bestiary.core.runtime.pulse import Pulse
from bestiary.core.runtime.request import Request, State
from bestiary.core.runtime.restrictions import Guide, Restrictions
from bestiary.core.runtime.scheduler import Scheduler
from bestiary.core.runtime.slow_calls import SlowCalls
from bestiary.core.runtime.stats import EngineStats, Meters, snapshot

log = logging.getLogger(__name__)

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
    """

    def __init__(self, executor: Executor, scheduler: Scheduler, *, vocab_size: int) -> None:
        self.executor, self.scheduler = executor, scheduler
        self.meters, self.pulse, self.slow_calls = Meters(), Pulse(), SlowCalls()
        self._answers = Answers(self._blame, self._stopped)
        self._restrictions = Restrictions(vocab_size, self.slow_calls)
        self._given_up: EngineError | None = None  # by another thread, while a step hung
        self._flight: _Flight | None = None
        self._ended: list[Request] = []  # in the step under way
        self._landed_at: float | None = None  # while steps follow each other
        self._host = 0.0  # seconds of the host's own work since the last step was read

    @property
    def idle(self) -> bool:
        """No request is under way."""
        return not self._answers

    @property
    def failure(self) -> EngineError | None:
        """What ended the engine for good."""
        return self.executor.failure

    def submit(self, request: Request, answer: Answer, guide: Guide | None = None) -> None:
        """Queue a request.

        Args:
            guide: at the start of the grammar that its answer must match.

        Raises:
            RequestError: it can never fit the KV cache.
            EngineError: the engine is dead, or another request of this id is under way.
        """
        self.refuse_if_dead()
        if request in self._answers:
            raise EngineError("E-RUN-ID", f"request {request.id}", "another request of this id is under way")
        self.scheduler.submit(request)
        self._answers.add(request, answer)
        self._restrictions.add(request, guide)

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
        ended, self._ended = self._ended, []
        return ended

    def _advance(self) -> None:
        started = time.perf_counter()
        batch = self.scheduler.decide()
        for request, error in self.scheduler.take_failed():
            self._blame(request, error)
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
        if self._flight is None and self.scheduler.idle:
            self._landed_at = None

    def drain(self) -> list[Request]:
        """Step until nothing is left; the requests that ended, in that order."""
        ended: list[Request] = []
        while not self.idle:
            ended += self.step()
        return ended

    def abort(self, request: Request) -> bool:
        """End a request in any state; False if it had ended already."""
        ended = self._finish(request, "abort")
        self._ended.clear()
        return ended

    def abort_all(self) -> None:
        """End every request."""
        for request in [*self.scheduler.running, *self.scheduler.waiting]:
            self.abort(request)

    def give_up(self, error: EngineError) -> None:
        """The step under way does not end: the engine is dead, and everyone is told. Called by another thread than the one
        that is in the step, which changes nothing any more should it ever come back."""
        self._given_up = self.executor.failure = self.executor.failure or error
        self.executor.abandon()
        for request in self._answers.requests():
            self._close(request, self._given_up)

    def stats(self) -> EngineStats:
        """Figures of this moment."""
        return snapshot(self.meters, self.scheduler, self.pulse, self.slow_calls)

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
            return False
        return True

    def _choose(self, batch: Batch) -> None:
        """Start the choice of a step's tokens."""
        started = time.perf_counter()
        wanted, failed = self._restrictions.ask(batch, self.scheduler.slots)
        self._go_on()
        for request, error in failed:
            self._blame(request, error)
        self._host += time.perf_counter() - started
        pending = None
        if len(wanted.slots) or wanted.scored:
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
        self._take_in(batch, sampled, flight.asked, now)
        self._host += time.perf_counter() - started
        self._count(batch, now)

    def _take_in(self, batch: Batch, sampled: SampledMessage, asked: Ints | None, now: float) -> None:
        slots = self.scheduler.slots
        alive = slots.epoch[batch.slots] == batch.epochs
        self.meters.output_tokens += int(alive.sum())
        if len(sampled.tokens) and int(sampled.tokens.min()) < 0:
            for row in ((sampled.tokens < 0) & alive).nonzero()[0].tolist():
                self._unusable(slots.requests[batch.slots[row]], sampled.errors.get(row))
                alive[row] = False
        for call in sampled.slow_calls:
            owner = slots.requests[batch.slots[call.row]]
            if alive[call.row] and owner is not None:
                self.slow_calls.saw(call.plugin, owner.id, call.seconds)
        self._answers.prompt_scored(batch, sampled.scored)
        watched = [
            (row, request)
            for row in (slots.watched[batch.slots] & alive).nonzero()[0].tolist()
            if (request := slots.requests[batch.slots[row]]) is not None
        ]
        for request in self.scheduler.land(batch, sampled.tokens):
            self._ended.append(request)
        for request in batch.landed(alive):
            if request.num_output == 1:
                self.meters.began(request)
                self._answers.first_token(request, now)
        self._answers.added(watched, asked, sampled.logprobs)
        for request in self._ended:
            self._end(request, now)

    def _stopped(self, request: Request, stop: str) -> None:
        """A stop string is there, perhaps with a token that had ended the request already."""
        if not self._finish(request, "stop", stop) and request.finish_reason == "length":
            request.finish_reason, request.stop_reason = "stop", stop

    def _count(self, batch: Batch, now: float) -> None:
        self.meters.steps += 1
        if self._landed_at is not None:
            whole = now - self._landed_at
            self.meters.times.append((whole, self._host))
            self.scheduler.pace.saw(batch.message.decodes, batch.prompt_tokens, whole)
        self._landed_at, self._host = now, 0.0

    def _unusable(self, request: Request | None, cause: str | None) -> None:
        """A row that gave no token: its own code failed, or its numbers are broken and so are its keys and values."""
        if request is not None:
            reason = cause or "numerical_error: the logits have no finite maximum"
            if cause is None and request.restricted:
                reason += ", or its own restrictions (grammar, bans, allowed tokens) leave no token"
            self._finish(request, "error", reason, trusted=cause is not None)

    def _blame(self, request: Request, error: BaseException) -> None:
        """End a request whose own processing failed; if it had ended already, its reason is corrected."""
        log.error("request %s failed: %s", request.id, error, exc_info=error)
        reason = f"{type(error).__name__}: {error}"
        if not self._finish(request, "error", reason):
            request.finish_reason, request.stop_reason = "error", reason

    def _fail(self, batch: Batch, error: BaseException) -> None:
        """A step failed: its requests end, and what they stored is not trusted. If there was no memory for it, they are
        computed again in smaller steps instead, as long as steps can be made smaller."""
        log.error("step %d failed: %s", batch.number, error, exc_info=error)
        reason = f"{type(error).__name__}: {error}"
        again = _out_of_memory(error) and self.executor.failure is None and self.scheduler.retreat()
        if again:
            log.warning("steps have at most %d tokens from now on", self.scheduler.max_num_tokens)
        owners = [self.scheduler.slots.requests[slot] for slot in batch.slots.tolist()]
        of_step = [request for request in owners if request is not None]
        of_step += [segment.request for segment in batch.segments]
        for request in dict.fromkeys(of_step):
            if again:
                self.scheduler.repeat(request)
            else:
                self._finish(request, "error", reason, trusted=False)
        self._landed_at = None

    def _bury(self) -> None:
        """If the executor is dead, end everything and say so."""
        failure = self.executor.failure
        if failure is None:
            return
        self._flight = None
        for request in [*self.scheduler.running, *self.scheduler.waiting]:
            try:
                self._finish(request, "error", str(failure), trusted=False)
            except Exception as error:  # its blocks are lost with the engine; whoever waits for it is told all the same
                log.error("request %s: %s", request.id, error, exc_info=error)
                self._close(request, failure)
        self._ended = []
        raise failure

    def _close(self, request: Request, failure: EngineError) -> None:
        """End a request of a dead engine, whose blocks nobody counts any more."""
        if request.state is not State.FINISHED:
            request.state, request.finish_reason, request.stop_reason = State.FINISHED, "error", str(failure)
        self._end(request, time.monotonic())

    def _finish(
        self,
        request: Request,
        reason: FinishReason,
        stop_reason: int | str | None = None,
        *,
        trusted: bool = True,
    ) -> bool:
        """End a request for a reason that is not its token; False if it had ended already."""
        if not self.scheduler.finish(request, reason, stop_reason, trusted=trusted):
            return False
        self._ended.append(request)
        self._end(request, time.monotonic())
        return True

    def _end(self, request: Request, now: float) -> None:
        """The one terminal event of a request, if it is not past."""
        if self._answers.end(request, now):
            self._restrictions.drop(request)
            self.slow_calls.ended(request.id)
            self.meters.ended(request)


def _out_of_memory(error: BaseException) -> bool:
    """Of the host or a device; torch's own class is known by its name, since nothing here knows torch."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def _broken(error: BaseException) -> EngineError:
    return EngineError("E-RUN-LOOP", "engine loop", "failed", found=f"{type(error).__name__}: {error}")
