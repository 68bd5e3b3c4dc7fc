"""Beam search over one prompt's answers, by transformers' rules. Knows no model, no tokenizer and no torch.

A step: the caller gives each running beam's likeliest next tokens, ``advance`` answers which beams run on and with which
token, and keeps those that ended. Scores are sums of log-probabilities divided by ``length ** length_penalty``; length
counts generated tokens, the end token included.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Continuation(NamedTuple):
    """A beam of the next step: beam ``parent`` of this step and one ``token`` more."""

    parent: int
    token: int


class Ended(NamedTuple):
    """An answer: its tokens, their summed log-probability, and its score."""

    tokens: tuple[int, ...]
    sum_logprob: float
    score: float


class _Path(NamedTuple):
    """A running beam as its last token and what came before, shared with its siblings."""

    before: _Path | None
    token: int


class BeamSearch:
    """The beams of one prompt. Before the first ``advance`` one beam runs: the prompt.

    Args:
        width: how many beams run, and how many answers are kept.
        max_tokens: most tokens of an answer.
        end_tokens: tokens that end an answer.
        length_penalty: above 0 favours long answers.
        early_stopping: as ``BeamSearchParams`` says.
    """

    def __init__(
        self,
        width: int,
        *,
        max_tokens: int,
        end_tokens: Collection[int] = (),
        length_penalty: float = 1.0,
        early_stopping: bool | Literal["never"] = False,
    ) -> None:
        self._width, self._max_tokens = width, max_tokens
        self._end_tokens = np.array(sorted(set(end_tokens)), dtype=np.int64)
        self._penalty, self._early = length_penalty, early_stopping
        self._running: list[_Path | None] = [None]
        self._sums = np.zeros(1)
        self._length = 0
        self._ended: list[Ended] = []
        self.done = False

    @property
    def candidates(self) -> int:
        """How many of each beam's likeliest tokens ``advance`` needs: ``width`` that do not end it are among them.

        With a smaller vocabulary, all of it.
        """
        return self._width + len(self._end_tokens)

    def advance(self, tokens: NDArray[np.int64], logprobs: NDArray[Any]) -> list[Continuation]:
        """The beams of the next step, best first; none when the search is over, which ``done`` says too.

        Args:
            tokens: [B, C] of each running beam, in the order of the last result, its ``candidates`` likeliest tokens.
            logprobs: [B, C] their log-probabilities; a token of -inf or NaN is not taken. Of equal sums the earlier
                beam's, then the earlier in the row, counts as better.
        """
        sums = (self._sums[:, None] + logprobs).ravel()
        ids = tokens.ravel()
        order = np.argsort(-sums, kind="stable")
        order = order[np.isfinite(sums[order])]
        self._length += 1
        ends = np.isin(ids[order], self._end_tokens) | (self._length >= self._max_tokens)
        parents = order // tokens.shape[1]
        # Only the best `width` of all continuations may end an answer: one that ends further down is dropped.
        for place in np.flatnonzero(ends[: self._width]):
            self._keep(self._running[parents[place]], int(ids[order[place]]), float(sums[order[place]]))
        self._ended = sorted(self._ended, key=lambda ended: -ended.score)[: self._width]
        onward = np.flatnonzero(~ends)[: self._width]
        chosen = [Continuation(int(parents[i]), int(ids[order[i]])) for i in onward]
        self._running = [_Path(self._running[parent], token) for parent, token in chosen]
        self._sums = sums[order[onward]]
        self.done = not chosen or self._satisfied()
        return [] if self.done else chosen

    def results(self) -> list[Ended]:
        """At most ``width`` answers, best first; of equal scores the one that ended earlier comes first.

        Fewer, or none, only where logits processors left too few tokens to go on with.
        """
        return list(self._ended)

    def _keep(self, before: _Path | None, token: int, total: float) -> None:
        tokens = [token]
        while before is not None:
            tokens.append(before.token)
            before = before.before
        self._ended.append(Ended(tuple(reversed(tokens)), total, self._score(total, self._length)))

    def _satisfied(self) -> bool:
        """Enough answers ended, and no running beam is expected to do better than the worst of them."""
        if len(self._ended) < self._width:
            return False
        if self._early is True:
            return True
        longest = self._early == "never" and self._penalty > 0
        hoped = self._score(float(self._sums[0]), self._max_tokens if longest else self._length)
        return hoped <= self._ended[-1].score

    def _score(self, total: float, length: int) -> float:
        return total / float(length) ** self._penalty
