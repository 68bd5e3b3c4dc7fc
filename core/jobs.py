"""A prompt on its way through the engine: the requests it needs, and the one output they make."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from bestiary.core.answer import TextAnswer
from bestiary.core.best_of import likeliest_answers
from bestiary.core.outputs import RequestOutput, StreamPiece
from bestiary.core.runtime.containment import PluginFailure
from bestiary.core.runtime.loop import EngineLoop
from bestiary.core.runtime.request import Request
from bestiary.core.runtime.restrictions import Guide
from bestiary.core.runtime.scheduler import Scheduler

if TYPE_CHECKING:
    import numpy.typing as npt


class Job(Protocol):
    """What the engine does for one prompt."""

    @property
    def finished(self) -> bool:
        """The output is complete."""

    def check(self, scheduler: Scheduler) -> None:
        """Refuse what can never run. Raises RequestError with the arithmetic."""

    def start(self, loop: EngineLoop) -> None:
        """Submit its requests. Raises what keeps it from that; ``fail`` is to follow."""

    def abort(self, loop: EngineLoop) -> None:
        """End what has not ended."""

    def fail(self, error: BaseException, loop: EngineLoop) -> None:
        """It could not be started, or not wholly: end it with the error."""

    def pieces(self) -> list[StreamPiece]:
        """What came since the last call; the last piece of each answer has its ``finish_reason``."""

    def output(self) -> RequestOutput:
        """Everything so far."""


class Part(NamedTuple):
    """One answer to a prompt."""

    request: Request
    answer: TextAnswer
    guide: Guide | None = None


class SamplingJob:
    """One or more answers to a prompt, each a request; the later ones share the first one's prompt blocks.

    Args:
        prompt: its text, if it had one.
        wanted: how many answers are returned.
        ranked: those with the greatest mean log-probability a token, best first; failed ones are the last.
        scored: log-probabilities were asked for, not only needed for ranking.
        failure: what a plugin raised when the job was made; it ends without having begun.
    """

    def __init__(
        self,
        prompt: str | None,
        parts: Sequence[Part],
        *,
        wanted: int,
        ranked: bool,
        scored: bool,
        failure: PluginFailure | None = None,
    ) -> None:
        self._prompt, self._parts, self._failure = prompt, tuple(parts), failure
        self._wanted, self._ranked, self._scored = wanted, ranked, scored
        self._told: set[int] = set()  # answers whose last piece is out

    @property
    def finished(self) -> bool:
        return all(part.answer.finished for part in self._parts)

    def check(self, scheduler: Scheduler) -> None:
        for part in self._parts:
            scheduler.admissible(part.request)

    def start(self, loop: EngineLoop) -> None:
        if self._failure is not None:
            raise self._failure
        for part in self._parts:
            loop.submit(*part)

    def abort(self, loop: EngineLoop) -> None:
        for part in self._parts:
            loop.abort(part.request)

    def fail(self, error: BaseException, loop: EngineLoop) -> None:
        for request, answer, _ in self._parts:
            if not answer.finished:
                loop.refuse(request, answer, error)

    def pieces(self) -> list[StreamPiece]:
        if self._ranked:
            return self._best()
        found = []
        for index, (_, answer, _) in enumerate(self._parts):
            done = answer.finished
            if index not in self._told and (done or answer.has_news()):
                piece = answer.piece(done)
                if done:
                    self._told.add(index)
                    piece = replace(piece, taps=self._taps())
                found.append(piece)
        return found

    def _best(self) -> list[StreamPiece]:
        """Which answers are the best is known at the end: each of them is one piece."""
        if not self.finished or self._told:
            return []
        self._told.update(range(self._wanted))
        best = self.output().outputs
        return [StreamPiece(o.text, o.token_ids, o.finish_reason, o.stop_reason, o.index) for o in best]

    def output(self) -> RequestOutput:
        first = self._parts[0]
        answers = [part.answer for part in self._parts]
        if self._ranked:
            failed = [answer.request.finish_reason == "error" for answer in answers]
            sums = [-math.inf if f else a.cumulative_logprob for f, a in zip(failed, answers, strict=True)]
            best = likeliest_answers(sums, [answer.request.num_output for answer in answers], self._wanted)
            answers = [answers[index] for index in best]
        outputs = [answer.output() for answer in answers[: self._wanted]]
        for index, output in enumerate(outputs):
            output.index = index
            if not self._scored:
                output.logprobs = output.cumulative_logprob = None
        request = first.request
        return RequestOutput(
            request_id=request.id,
            prompt=self._prompt,
            prompt_token_ids=request.prompt,
            outputs=outputs,
            finished=self.finished,
            metrics=first.answer.metrics,
            prompt_logprobs=first.answer.prompt_logprobs,
            num_cached_tokens=request.num_cached or 0,
            cache_miss=request.cache_miss,
            num_preemptions=sum(part.request.preemptions for part in self._parts),
            taps=self._taps(),
        )

    def _taps(self) -> dict[str, npt.NDArray[Any]] | None:
        """Of every token that was computed; only a prompt with one answer has any."""
        request = self._parts[0].request
        if request.tapped is None:
            return None
        return request.tapped.arrays(max(request.prompt_length, len(request.tokens) - 1))
