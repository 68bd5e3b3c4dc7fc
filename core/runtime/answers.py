"""Where results go: each request's answer, told of tokens, scores and its end. What an answer raises ends its request only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from bestiary.core.outputs import LogprobDict
from bestiary.core.runtime.batch import Batch, PromptScores
from bestiary.core.runtime.containment import contained
from bestiary.core.runtime.logprob_dicts import logprob_dict
from bestiary.core.runtime.messages import Ints, Logprobs
from bestiary.core.runtime.request import Request, State


class Answer(Protocol):
    """One request's results."""

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


class Answers:
    """The answers of the requests under way.

    Args:
        blame: ends a request whose answer raised.
        stopped: ends a request at a stop string.
    """

    def __init__(
        self, blame: Callable[[Request, BaseException], None], stopped: Callable[[Request, str], None]
    ) -> None:
        self._blame, self._stopped = blame, stopped
        self._open: dict[str, Answer] = {}
        self._requests: dict[str, Request] = {}

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, request: Request) -> bool:
        return request.id in self._open

    def add(self, request: Request, answer: Answer) -> None:
        """A request begins."""
        request.watched = answer.watches
        self._open[request.id] = answer
        self._requests[request.id] = request

    def drop(self, request: Request) -> None:
        """It did not begin, or not wholly."""
        self._open.pop(request.id, None)
        self._requests.pop(request.id, None)

    def requests(self) -> list[Request]:
        """Those that have not ended. May be called from any thread."""
        return list(self._requests.values())

    def first_token(self, request: Request, now: float) -> None:
        """The request's first token is there."""
        answer = self._open.get(request.id)
        if answer is not None:
            try:
                answer.first_token(now)
            except BaseException as error:
                self._blame(request, contained(error))

    def added(self, watched: list[tuple[int, Request]], asked: Ints | None, found: Logprobs | None) -> None:
        """A token was appended to each of those who watch.

        Args:
            watched: sampling rows and their requests.
            asked: [n] by sampling row how many log-probabilities were asked for, -1 for none; ``found`` has the others.
        """
        places = None if asked is None else (asked >= 0).cumsum() - 1
        for row, request in watched:
            answer = self._open.get(request.id)
            if answer is None:
                continue
            try:
                entry = None
                if asked is not None and places is not None and found is not None and asked[row] >= 0:
                    entry = _entry(found, int(places[row]), int(request.tokens[-1]), int(asked[row]))
                stop = answer.added(entry)
                if stop is not None:
                    self._stopped(request, stop)
            except BaseException as error:
                self._blame(request, contained(error))

    def prompt_scored(self, batch: Batch, found: tuple[Logprobs, ...]) -> None:
        """Prompt log-probabilities that a step gave."""
        for score, values in zip(batch.scores, found, strict=True):
            known = score.request.num_scored - score.first  # by a step before it was preempted
            if score.request.state is State.FINISHED or not 0 <= known < len(score.rows.targets):
                continue  # below 0: the step that was to give those before failed, so that it is computed again
            try:
                self._score(score, values, known)
            except BaseException as error:
                self._blame(score.request, contained(error))

    def _score(self, score: PromptScores, values: Logprobs, known: int) -> None:
        targets = score.rows.targets.tolist()
        score.request.num_scored = score.first + len(targets)
        entries = [_entry(values, row, targets[row], score.rows.best) for row in range(known, len(targets))]
        self._open[score.request.id].prompt_scored(entries)

    def end(self, request: Request, now: float) -> bool:
        """The one terminal event of a request; False if it is past."""
        answer = self._open.pop(request.id, None)
        self._requests.pop(request.id, None)
        if answer is None:
            return False
        try:
            answer.end(now)
        except BaseException as error:
            self._blame(request, contained(error))
        return True


def _entry(found: Logprobs, row: int, token: int, best: int) -> LogprobDict:
    return logprob_dict(
        token,
        float(found.chosen[row]),
        int(found.ranks[row]),
        found.ids[row, :best].tolist(),
        found.values[row, :best].tolist(),
    )
