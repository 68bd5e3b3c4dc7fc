"""The engine loop: decide, run, sample, apply. Token ids only; what text needs is asked of each request's answer."""

from __future__ import annotations

import logging
import time
from typing import Protocol

from torch import Tensor

from bestiary.core.errors import EngineError
from bestiary.core.outputs import LogprobDict
from bestiary.core.runtime.batch import Batch
from bestiary.core.runtime.request import Request
from bestiary.core.runtime.sampler import Sampled, Sampler
from bestiary.core.runtime.scheduler import Scheduler

log = logging.getLogger(__name__)


class ForwardRunner(Protocol):
    """Runs a step: logits [num_rows, V] of the rows that the segments want, in their order."""

    def forward(self, batch: Batch) -> Tensor: ...


class Answer(Protocol):
    """Where a request's results go. An exception in any of these ends this request only."""

    watches: bool
    """``added`` wants every token as it comes (stop strings, log-probabilities)."""

    def first_token(self, now: float) -> None:
        """The prompt has run and a token is there."""

    def prompt_scored(self, entries: list[LogprobDict]) -> None:
        """Log-probabilities of the next prompt tokens."""

    def added(self, logprobs: LogprobDict | None) -> str | None:
        """A token was appended; the stop string that ends the request here, if one does."""

    def end(self, now: float) -> None:
        """The request has ended; called once, last. May turn a ``"length"`` into a ``"stop"``."""


class EngineLoop:
    """Runs requests. Every submitted request ends exactly once, by its own end, ``abort``, or an error.

    Args:
        runner: executes a step.
        scheduler: holds the requests and their blocks.
    """

    def __init__(self, runner: ForwardRunner, scheduler: Scheduler) -> None:
        self.runner, self.scheduler, self.sampler = runner, scheduler, Sampler()
        self._answers: dict[str, Answer] = {}
        self._watched: dict[str, Answer] = {}

    @property
    def idle(self) -> bool:
        """No request is under way."""
        return not self._answers

    def submit(self, request: Request, answer: Answer) -> None:
        """Queue a request.

        Raises:
            RequestError: it can never fit the KV cache.
            EngineError: another request of this id is under way.
        """
        if request.id in self._answers:
            raise EngineError("E-RUN-ID", f"request {request.id}", "another request of this id is under way")
        self.scheduler.submit(request)
        self._answers[request.id] = answer
        if answer.watches:
            self._watched[request.id] = answer

    def step(self) -> list[Request]:
        """One step over the batch; the requests that ended in it.

        Raises:
            EngineError: the model failed; the requests of the step have ended with an error, the others go on.
        """
        batch = self.scheduler.decide()
        if not batch.segments:
            if self.scheduler.waiting:
                raise EngineError("E-RUN-STALL", "scheduler", "requests wait though nothing runs")
            return []
        try:
            sampled = self.sampler.sample(self.runner.forward(batch), batch)
        except Exception as error:
            for segment in batch.segments:
                self._fail(segment.request, error)
            raise EngineError(
                "E-RUN-FORWARD", "engine", "a step failed", found=f"{type(error).__name__}: {error}"
            ) from error
        ended = [self._unusable(batch.segments[index].request) for index in sampled.unusable]
        if sampled.prompt_logprobs:
            ended += self._score_prompts(batch, sampled)
        ended += self.scheduler.apply(batch, sampled.tokens)
        ended += self._tell(batch, sampled)
        return [request for request in ended if self._end(request)]

    def drain(self) -> list[Request]:
        """Step until nothing is left; the requests that ended, in that order."""
        ended: list[Request] = []
        while not self.idle:
            ended += self.step()
        return ended

    def abort(self, request: Request) -> bool:
        """End a request in any state; False if it had ended already."""
        return self.scheduler.finish(request, "abort") and self._end(request)

    def abort_all(self) -> None:
        """End every request."""
        for request in [*self.scheduler.running, *self.scheduler.waiting]:
            self.abort(request)

    def _tell(self, batch: Batch, sampled: Sampled) -> list[Request]:
        """Pass on first tokens, and every token to those who watch; the requests that ended by it."""
        now = time.monotonic()
        ended: list[Request] = []
        watched = self._watched
        for index, segment in enumerate(batch.segments):
            request = segment.request
            if segment.start >= request.prompt_length and request.id not in watched:
                continue
            if sampled.tokens[index] is None or request.id not in self._answers:
                continue
            try:
                if segment.start < request.prompt_length:
                    self._answers[request.id].first_token(now)
                if request.id in watched:
                    stop = watched[request.id].added(sampled.logprobs.get(index))
                    if stop is not None and self._stopped(request, stop):
                        ended.append(request)
            except Exception as error:
                if self._blame(request, error):
                    ended.append(request)
        return ended

    def _stopped(self, request: Request, stop: str) -> bool:
        """A stop string is there; False if the same token had already ended the request."""
        if self.scheduler.finish(request, "stop", stop):
            return True
        if request.finish_reason == "length":
            request.finish_reason, request.stop_reason = "stop", stop
        return False

    def _score_prompts(self, batch: Batch, sampled: Sampled) -> list[Request]:
        ended: list[Request] = []
        for index, entries in sampled.prompt_logprobs.items():
            request = batch.segments[index].request
            try:
                if request.id in self._answers:
                    self._answers[request.id].prompt_scored(entries)
            except Exception as error:
                if self._blame(request, error):
                    ended.append(request)
        return ended

    def _unusable(self, request: Request) -> Request:
        self.scheduler.finish(request, "error", "numerical_error: the logits have no finite maximum")
        return request

    def _blame(self, request: Request, error: Exception) -> bool:
        """End a request whose own processing failed; False if it had ended already (its reason is corrected)."""
        log.error("request %s failed: %s", request.id, error, exc_info=error)
        reason = f"{type(error).__name__}: {error}"
        if self.scheduler.finish(request, "error", reason):
            return True
        request.finish_reason, request.stop_reason = "error", reason
        return False

    def _fail(self, request: Request, error: Exception) -> None:
        self.scheduler.finish(request, "error", f"{type(error).__name__}: {error}")
        self._end(request)

    def _end(self, request: Request) -> bool:
        """The one terminal event of a request; False if it is past."""
        answer = self._answers.pop(request.id, None)
        if answer is None:
            return False
        self._watched.pop(request.id, None)
        self.sampler.forget(request)
        try:
            answer.end(time.monotonic())
        except Exception as error:
            self._blame(request, error)
        return True
