"""The engine loop: decide, launch, read, take in, choose. Token ids only; what text needs is asked of each request's answer.

Where the executor overlaps, step n + 1 is decided and its forward launched before the tokens of step n are read; they are
read while it runs, so that grammars, n-grams and logits processors know them before the tokens of step n + 1 are chosen.
"""

from __future__ import annotations

import logging
import statistics
import time
from typing import NamedTuple, Protocol

import numpy as np

from bestiary.core.errors import EngineError
from bestiary.core.outputs import FinishReason, LogprobDict
from bestiary.core.runtime import restrictions
from bestiary.core.runtime.batch import Batch
from bestiary.core.runtime.executor import Executor, Pending
from bestiary.core.runtime.logprob_dicts import logprob_dict
from bestiary.core.runtime.messages import Ints, Logprobs, SampledMessage, SampleMessage
from bestiary.core.runtime.request import Request, State
from bestiary.core.runtime.restrictions import Restriction
from bestiary.core.runtime.scheduler import Scheduler
from bestiary.core.runtime.stats import EngineStats, Meters, StepTime
from bestiary.spec import GrammarMatcher

log = logging.getLogger(__name__)


class Answer(Protocol):
    """Where a request's results go. An exception in any of these ends this request only."""

    watches: bool
    """``added`` wants every token as it comes (stop strings, log-probabilities, streams)."""

    def first_token(self, now: float) -> None:
        """The prompt has run and a token is there."""

    def prompt_scored(self, entries: list[LogprobDict]) -> None:
        """Log-probabilities of the next prompt tokens."""

    def added(self, logprobs: LogprobDict | None) -> str | None:
        """A token was appended; the stop string that ends the request here, if one does."""

    def end(self, now: float) -> None:
        """The request has ended; called once, last. May turn a ``"length"`` into a ``"stop"``."""


class _Flight(NamedTuple):
    """A step that was launched; ``pending`` is None where nothing is to be read of it."""

    batch: Batch
    pending: Pending | None


class EngineLoop:
    """Runs requests. Every submitted request ends exactly once, by its own end, ``abort``, or an error.

    Args:
        executor: runs the steps.
        scheduler: holds the requests and their blocks.
        vocab_size: width of the logits.
    """

    def __init__(self, executor: Executor, scheduler: Scheduler, *, vocab_size: int) -> None:
        self.executor, self.scheduler = executor, scheduler
        self.meters = Meters()
        self._vocab_size = vocab_size
        self._answers: dict[str, Answer] = {}
        self._restrictions: dict[str, Restriction] = {}
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

    def submit(self, request: Request, answer: Answer, matcher: GrammarMatcher | None = None) -> None:
        """Queue a request.

        Args:
            matcher: at the start of the grammar that its answer must match.

        Raises:
            RequestError: it can never fit the KV cache.
            EngineError: the engine is dead, or another request of this id is under way.
        """
        self.refuse_if_dead()
        if request.id in self._answers:
            raise EngineError("E-RUN-ID", f"request {request.id}", "another request of this id is under way")
        request.watched = answer.watches
        self.scheduler.submit(request)
        self._answers[request.id] = answer
        if request.restricted:
            self._restrictions[request.id] = Restriction(request, self._vocab_size, matcher)

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
        try:
            self._advance()
        except Exception as error:
            log.error("the engine loop failed: %s", error, exc_info=error)
            broken = error if isinstance(error, EngineError) else _broken(error)
            self.executor.failure = self.executor.failure or broken
        self._bury()
        ended, self._ended = self._ended, []
        return ended

    def _advance(self) -> None:
        started = time.perf_counter()
        batch = self.scheduler.decide()
        self._host += time.perf_counter() - started
        launched = batch is not None and self._launch(batch)
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

    def stats(self) -> EngineStats:
        """Figures of this moment."""
        pools, meters, times = self.scheduler.tables.pools, self.meters, list(self.meters.times)
        return EngineStats(
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting),
            finished=dict(meters.finished),
            preemptions=self.scheduler.num_preemptions,
            prompt_tokens=meters.prompt_tokens,
            cached_tokens=meters.cached_tokens,
            output_tokens=meters.output_tokens,
            blocks_free=sum(pool.num_free for pool in pools),
            blocks_cached=sum(pool.num_cached for pool in pools),
            blocks_used=sum(pool.num_used for pool in pools),
            steps=meters.steps,
            step_seconds=statistics.median(time.whole for time in times) if times else 0.0,
            host_seconds=statistics.median(time.host for time in times) if times else 0.0,
        )

    def _launch(self, batch: Batch) -> bool:
        """Start a step's forward; False if that failed, which ends its requests."""
        try:
            self.executor.forward(batch.message)
        except Exception as error:
            if self._flight is not None:  # what is there already is sound
                self._land(self._flight)
            self._fail(batch, error)
            return False
        return True

    def _choose(self, batch: Batch) -> None:
        """Start the choice of a step's tokens."""
        started = time.perf_counter()
        wanted = self._wanted(batch)
        self._host += time.perf_counter() - started
        pending = None
        if len(wanted.slots) or wanted.scored:
            try:
                pending = self.executor.sample(wanted)
            except Exception as error:
                self._fail(batch, error)
                return
        self._flight = _Flight(batch, pending)

    def _wanted(self, batch: Batch) -> SampleMessage:
        slots, chosen = self.scheduler.slots, batch.slots
        scored = tuple(score.rows for score in batch.scores)
        if slots.plain[chosen].all():
            return SampleMessage(chosen, batch.rows, scored=scored)
        rows = []
        for row in slots.restricted[chosen].nonzero()[0].tolist():
            request = slots.requests[chosen[row]]
            if request is not None:  # not ended by the step before
                rows.append((row, request, self._restrictions[request.id]))
        found = restrictions.collect(rows)
        for request, error in found.failed:
            self._blame(request, error)
        logprobs = None
        if slots.scored[chosen].any():
            logprobs = np.array([self._logprobs_of(slot) for slot in chosen.tolist()], np.int32)
        return SampleMessage(
            chosen,
            batch.rows,
            False,
            found.bans,
            found.allowed,
            found.histories,
            found.guided,
            logprobs,
            scored,
        )

    def _logprobs_of(self, slot: int) -> int:
        request = self.scheduler.slots.requests[slot]
        return -1 if request is None or request.params.logprobs is None else request.params.logprobs

    def _land(self, flight: _Flight) -> None:
        """Read a step's results and take them in."""
        self._flight, batch = None, flight.batch
        try:
            sampled = SampledMessage(_NO_TOKENS) if flight.pending is None else flight.pending.read()
        except Exception as error:
            self._fail(batch, error)
            return
        now, started = time.monotonic(), time.perf_counter()
        self._take_in(batch, sampled, now)
        self._host += time.perf_counter() - started
        self._count(batch, now)

    def _take_in(self, batch: Batch, sampled: SampledMessage, now: float) -> None:
        slots = self.scheduler.slots
        alive = slots.epoch[batch.slots] == batch.epochs
        self.meters.output_tokens += int(alive.sum())
        if len(sampled.tokens) and int(sampled.tokens.min()) < 0:
            for row in ((sampled.tokens < 0) & alive).nonzero()[0].tolist():
                self._unusable(slots.requests[batch.slots[row]], sampled.errors.get(row))
                alive[row] = False
        self._score_prompts(batch, sampled)
        watched = [
            (row, request)
            for row in (slots.watched[batch.slots] & alive).nonzero()[0].tolist()
            if (request := slots.requests[batch.slots[row]]) is not None
        ]
        for request in self.scheduler.land(batch, sampled.tokens):
            self._ended.append(request)
        for request in batch.landed(alive):
            if request.num_output == 1:
                self._tell_first(request, now)
        if watched:
            self._tell(watched, sampled.logprobs)
        for request in self._ended:
            self._end(request, now)

    def _tell_first(self, request: Request, now: float) -> None:
        answer = self._answers.get(request.id)
        if answer is not None:
            self.meters.prompt_tokens += request.prompt_length
            self.meters.cached_tokens += request.num_cached or 0
            try:
                answer.first_token(now)
            except Exception as error:
                self._blame(request, error)

    def _tell(self, watched: list[tuple[int, Request]], logprobs: Logprobs | None) -> None:
        """Pass on a token to each of those who watch."""
        asked = 0
        for _, request in watched:
            entry = None
            if request.params.logprobs is not None and logprobs is not None:
                entry = _entry(logprobs, asked, int(request.tokens[-1]), request.params.logprobs)
                asked += 1
            answer = self._answers.get(request.id)
            if answer is None:
                continue
            try:
                stop = answer.added(entry)
                if stop is not None:
                    self._stopped(request, stop)
            except Exception as error:
                self._blame(request, error)

    def _stopped(self, request: Request, stop: str) -> None:
        """A stop string is there, perhaps with a token that had ended the request already."""
        if not self._finish(request, "stop", stop) and request.finish_reason == "length":
            request.finish_reason, request.stop_reason = "stop", stop

    def _score_prompts(self, batch: Batch, sampled: SampledMessage) -> None:
        for score, found in zip(batch.scores, sampled.scored, strict=True):
            request, targets = score.request, score.rows.targets.tolist()
            known = request.num_scored - score.first  # by a step before it was preempted
            if request.state is State.FINISHED or known >= len(targets):
                continue
            request.num_scored = score.first + len(targets)
            entries = [_entry(found, row, targets[row], score.rows.count) for row in range(known, len(targets))]
            try:
                self._answers[request.id].prompt_scored(entries)
            except Exception as error:
                self._blame(request, error)

    def _count(self, batch: Batch, now: float) -> None:
        self.meters.steps += 1
        if self._landed_at is not None:
            decodes = batch.message.decodes
            whole = now - self._landed_at
            self.meters.times.append(StepTime(whole, self._host, decodes, batch.prompt_tokens))
            self.scheduler.pace.saw(decodes, batch.prompt_tokens, whole)
        self._landed_at, self._host = now, 0.0

    def _unusable(self, request: Request | None, cause: str | None) -> None:
        """A row that gave no token: its own code failed, or its numbers are broken and so are its keys and values."""
        if request is not None:
            reason = cause or "numerical_error: the logits have no finite maximum"
            self._finish(request, "error", reason, trusted=cause is not None)

    def _blame(self, request: Request, error: Exception) -> None:
        """End a request whose own processing failed; if it had ended already, its reason is corrected."""
        log.error("request %s failed: %s", request.id, error, exc_info=error)
        reason = f"{type(error).__name__}: {error}"
        if not self._finish(request, "error", reason):
            request.finish_reason, request.stop_reason = "error", reason

    def _fail(self, batch: Batch, error: Exception) -> None:
        """A step failed: its requests end, and what they stored is not trusted."""
        log.error("step %d failed: %s", batch.number, error, exc_info=error)
        reason = f"{type(error).__name__}: {error}"
        owners = [self.scheduler.slots.requests[slot] for slot in batch.slots.tolist()]
        of_step = [request for request in owners if request is not None]
        of_step += [segment.request for segment in batch.segments]
        for request in dict.fromkeys(of_step):
            self._finish(request, "error", reason, trusted=False)
        self._landed_at = None

    def _bury(self) -> None:
        """If the executor is dead, end everything and say so."""
        failure = self.executor.failure
        if failure is None:
            return
        self._flight = None
        for request in [*self.scheduler.running, *self.scheduler.waiting]:
            self._finish(request, "error", str(failure), trusted=False)
        self._ended = []
        raise failure

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
        answer = self._answers.pop(request.id, None)
        if answer is None:
            return
        self._restrictions.pop(request.id, None)
        try:
            answer.end(now)
        except Exception as error:
            self._blame(request, error)
        self.meters.ended(request.finish_reason or "error")


_NO_TOKENS: Ints = np.zeros(0, np.int32)


def _broken(error: Exception) -> EngineError:
    return EngineError("E-RUN-LOOP", "engine loop", "failed", found=f"{type(error).__name__}: {error}")


def _entry(found: Logprobs, row: int, token: int, count: int) -> LogprobDict:
    return logprob_dict(
        token,
        float(found.chosen[row]),
        int(found.ranks[row]),
        found.ids[row, :count].tolist(),
        found.values[row, :count].tolist(),
    )
