"""Beam search for one prompt, beside all other requests: each beam's next token is a short request of its own.

A beam's request has the prompt and the beam's tokens as its prompt, and finds nearly all of it in the prefix cache: the
blocks that its parent filled are shared, and the last one is copied. So beams need no blocks of their own kind, wait and are
preempted like everyone, and hold nothing while they wait for each other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from bestiary.core.outputs import (
    CompletionOutput,
    FinishReason,
    LogprobDict,
    RequestMetrics,
    RequestOutput,
    StreamPiece,
)
from bestiary.core.resolved_params import ResolvedParams
from bestiary.core.runtime.beam import BeamSearch, Ended
from bestiary.core.runtime.containment import cause, contained
from bestiary.core.runtime.loop import EngineLoop
from bestiary.core.runtime.request import Request, State
from bestiary.core.runtime.scheduler import Scheduler
from bestiary.core.text.tokenizer import Tokenizer


class Beams(NamedTuple):
    """What a search needs besides the prompt.

    Args:
        params: greedy, of one token without end tokens, with as many log-probabilities as the search wants.
        end_tokens: tokens that end an answer.
        max_tokens: most tokens of an answer.
        max_seq_len: most tokens of a request.
    """

    search: BeamSearch
    params: ResolvedParams
    end_tokens: frozenset[int]
    max_tokens: int
    max_seq_len: int


class BeamJob:
    """See :class:`~bestiary.core.jobs.Job`."""

    def __init__(
        self,
        name: str,
        prompt: str | None,
        token_ids: Sequence[int],
        beams: Beams,
        tokenizer: Tokenizer | None,
        on_news: Callable[[], None] | None = None,
    ) -> None:
        self._name, self._prompt, self._ids, self._beams = name, prompt, list(token_ids), beams
        self._tokenizer, self._on_news = tokenizer, on_news
        self._paths: list[list[int]] = [[]]  # the running beams' tokens
        self._steps: list[_BeamStep] = []
        self._waiting_for = 0
        self._first = self._request([], 0)
        self._loop: EngineLoop | None = None  # that runs it
        self._preempted = 0  # requests of earlier steps
        self._reason: FinishReason | None = None  # where the search did not come to its end
        self._cause: int | str | None = None
        self._found: list[CompletionOutput] = []
        self._told = False
        self._metrics = RequestMetrics(time.monotonic())

    @property
    def finished(self) -> bool:
        return self._metrics.finished_time is not None

    def check(self, scheduler: Scheduler) -> None:
        longest = Request(self._name, self._ids, self._beams.params, max_seq_len=self._beams.max_seq_len)
        longest.max_length = len(self._ids) + self._beams.max_tokens
        scheduler.admissible(longest)

    def start(self, loop: EngineLoop) -> None:
        self._loop = loop
        self._submit([self._first], loop)

    def abort(self, loop: EngineLoop) -> None:
        if not self.finished:
            self._over("abort", None)
            for step in self._steps:
                loop.abort(step.request)

    def fail(self, error: BaseException, loop: EngineLoop) -> None:
        if not self.finished:
            self._over("error", cause(error))
            for step in self._steps:
                loop.abort(step.request)

    def pieces(self) -> list[StreamPiece]:
        if not self.finished or self._told:
            return []
        self._told = True
        outputs = self._outputs()
        return [StreamPiece(o.text, o.token_ids, o.finish_reason, o.stop_reason, o.index) for o in outputs]

    def output(self) -> RequestOutput:
        return RequestOutput(
            request_id=self._name,
            prompt=self._prompt,
            prompt_token_ids=list(self._ids),
            outputs=self._outputs(),
            finished=self.finished,
            metrics=self._metrics,
            num_cached_tokens=self._first.num_cached or 0,
            cache_miss=self._first.cache_miss,
            num_preemptions=self._preempted + self._preemptions(),
        )

    def _request(self, path: list[int], beam: int) -> Request:
        """A beam's next step; it runs when the first one would."""
        return Request(
            f"{self._name}:{len(path)}.{beam}",
            self._ids + path,
            self._beams.params,
            max_seq_len=self._beams.max_seq_len,
            follows=self._first if path else None,
            part=True,
        )

    def _preemptions(self) -> int:
        """Of this step's requests."""
        return sum(step.request.preemptions for step in self._steps)

    def _submit(self, requests: list[Request], loop: EngineLoop) -> None:
        self._preempted += self._preemptions()
        self._steps = [_BeamStep(request, self._arrived) for request in requests]
        self._waiting_for = len(requests)
        for step in self._steps:
            if not self.finished:  # by one that failed at once
                loop.submit(step.request, step)

    def _arrived(self, step: _BeamStep) -> None:
        """One beam's request has ended."""
        if self.finished:
            return
        if step.found is None:
            self._over(step.request.finish_reason or "error", step.request.stop_reason)
            for other in self._steps:
                if self._loop is not None and other.request.state is not State.FINISHED:
                    self._loop.abort(other.request)
            return
        self._waiting_for -= 1
        if self._waiting_for == 0:
            self._advance()

    def _advance(self) -> None:
        assert self._loop is not None
        if self._metrics.first_token_time is None:
            self._metrics.first_token_time = time.monotonic()
        found = [step.candidates(self._beams.search.candidates) for step in self._steps]
        tokens, logprobs = (np.array(part) for part in zip(*found, strict=True))
        onward = self._beams.search.advance(tokens, logprobs)
        if not onward:
            self._over(None, None)
            return
        self._paths = [[*self._paths[parent], token] for parent, token in onward]
        try:
            self._submit([self._request(path, beam) for beam, path in enumerate(self._paths)], self._loop)
        except Exception as error:
            self._over("error", cause(error))

    def _over(self, reason: FinishReason | None, found: int | str | None) -> None:
        try:
            best = [] if reason is not None else self._beams.search.results()
            self._found = [self._completion(index, ended) for index, ended in enumerate(best)]
        except BaseException as error:
            reason, found = "error", cause(contained(error))
        self._reason, self._cause = reason, found
        if self._loop is not None:
            self._loop.meters.over(reason or (self._found[0].finish_reason if self._found else None) or "error")
        self._metrics.finished_time = time.monotonic()
        if self._on_news is not None:
            self._on_news()

    def _outputs(self) -> list[CompletionOutput]:
        if self._reason is not None:
            return [CompletionOutput(0, "", [], finish_reason=self._reason, stop_reason=self._cause)]
        return list(self._found)

    def _completion(self, index: int, ended: Ended) -> CompletionOutput:
        tokens, reason = list(ended.tokens), self._ended_by(ended)
        shown = tokens[:-1] if reason == "stop" else tokens
        return CompletionOutput(
            index=index,
            text="" if self._tokenizer is None else self._tokenizer.continuation(self._ids, shown),
            token_ids=tokens,
            cumulative_logprob=ended.sum_logprob,
            score=ended.score,
            finish_reason=reason,
        )

    def _ended_by(self, ended: Ended) -> FinishReason:
        return "stop" if ended.tokens[-1] in self._beams.end_tokens else "length"


class _BeamStep:
    """The answer of one beam's request: its likeliest next tokens."""

    watches = True

    def __init__(self, request: Request, arrived: Callable[[_BeamStep], None]) -> None:
        self.request, self._arrived = request, arrived
        self.found: LogprobDict | None = None

    def candidates(self, count: int) -> tuple[list[int], list[float]]:
        """The ``count`` likeliest tokens, or all there are, and their log-probabilities."""
        assert self.found is not None
        best = list(self.found.items())[:count]
        return [token for token, _ in best], [value.logprob for _, value in best]

    def first_token(self, now: float) -> None:
        pass

    def prompt_scored(self, entries: list[LogprobDict]) -> None:
        pass

    def added(self, logprobs: LogprobDict | None) -> str | None:
        self.found = logprobs
        return None

    def end(self, now: float) -> None:
        self._arrived(self)
