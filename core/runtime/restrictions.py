"""Tokens that a request may not take next, told by what its answer holds so far. On the host; knows no torch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, cast

import numpy as np

from bestiary.core.runtime.bad_words import BadWords
from bestiary.core.runtime.batch import Batch
from bestiary.core.runtime.bitmasks import Bitmask, bitmask, words
from bestiary.core.runtime.containment import PluginFailure, cause, contained
from bestiary.core.runtime.messages import Bans, History, Ints, Masks, SampleMessage
from bestiary.core.runtime.ngrams import NgramIndex
from bestiary.core.runtime.request import Request
from bestiary.core.runtime.slots import Slots
from bestiary.core.runtime.slow_calls import SlowCalls
from bestiary.spec import GrammarMatcher


class Guide(NamedTuple):
    """A request's grammar.

    Args:
        matcher: where its answer stands.
        plugin: the backend and its distribution.
        seconds: that compiling it took.
    """

    matcher: GrammarMatcher
    plugin: str
    seconds: float = 0.0

    def fork(self) -> Guide:
        """For another answer to the same prompt.

        Raises:
            PluginFailure: the matcher's ``fork`` raised, or gave no matcher.
        """
        with blamed(self.plugin):
            return Guide(a_matcher(self.matcher.fork(), "fork"), self.plugin)


@contextmanager
def blamed(plugin: str) -> Iterator[None]:
    """What is raised in the block is a grammar's failure: it names it. Ctrl-C is not."""
    try:
        yield
    except PluginFailure:
        raise
    except BaseException as error:
        raise PluginFailure(plugin, cause(contained(error))) from error


def a_matcher(given: object, method: str) -> GrammarMatcher:
    """What a grammar's ``method`` returned, if it has what a matcher needs. Raises TypeError."""
    lacking = [name for name in ("accept", "fill", "fork") if not callable(getattr(given, name, None))]
    if lacking:
        kind = "None" if given is None else f"a {type(given).__name__}"
        raise TypeError(f"{method} returned {kind}, which is no GrammarMatcher: it has no {', '.join(lacking)}")
    return cast(GrammarMatcher, given)


class Restriction:
    """One request's.

    Attributes:
        plugin: whose grammar it is; empty without one.
        seconds: spent in the grammar's code since :meth:`bans` was called.
    """

    def __init__(self, request: Request, vocab_size: int, guide: Guide | None) -> None:
        params = request.params
        self._request, self._vocab_size = request, vocab_size
        self._matcher = None if guide is None else guide.matcher
        self.plugin, self.seconds = "" if guide is None else guide.plugin, 0.0
        self._seen = request.prompt_length
        self._ngrams: NgramIndex | None = None  # made when it is first asked, not while the request waits
        self._bad_words = BadWords(params.bad_token_ids) if params.bad_token_ids else None
        self.allowed: Bitmask | None = None
        if params.allowed_token_ids is not None:
            self.allowed = bitmask(params.allowed_token_ids, vocab_size)

    def bans(self) -> set[int]:
        """Tokens that are out for the next step.

        Raises:
            PluginFailure: the grammar does not admit a token that was chosen, or failed.
        """
        self.seconds = 0.0
        params, found = self._request.params, set[int]()
        if self._ngrams is None and params.no_repeat_ngram_size:
            self._ngrams = NgramIndex(params.no_repeat_ngram_size, self._request.tokens[: self._seen].tolist())
        self._catch_up()
        if self._seen - self._request.prompt_length < params.min_tokens:
            found |= params.end_token_ids
        if self._ngrams is not None:
            found |= self._ngrams.banned()
        if self._bad_words is not None:
            found |= self._bad_words.banned(self._request.tokens.tolist())
        return found

    def guided(self) -> Bitmask | None:
        """The tokens that its grammar allows next; None without one.

        Raises:
            PluginFailure: it allows none, or failed.
        """
        if self._matcher is None:
            return None
        row = np.zeros(words(self._vocab_size), np.int32)
        with self._in_grammar():
            self._matcher.fill(row)
        if not row.any():
            raise PluginFailure(self.plugin, "the grammar allows no token here")
        return row

    def history(self, row: int) -> History | None:
        """What its logits processors may see; None without any."""
        request = self._request
        if not request.params.logits_processors:
            return None
        tokens = request.tokens.copy()
        return History(row, tokens[: request.prompt_length], tokens[request.prompt_length :])

    def _catch_up(self) -> None:
        """Take in the tokens since the last step; those that were computed anew are known already."""
        for token in self._request.tokens[self._seen :].tolist():
            self._seen += 1
            if self._ngrams is not None:
                self._ngrams.append(token)
            if self._matcher is None:
                continue
            with self._in_grammar():
                accepted = self._matcher.accept(token)
            if not accepted:
                raise PluginFailure(self.plugin, f"the grammar does not admit token {token}, which was chosen")

    @contextmanager
    def _in_grammar(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            with blamed(self.plugin):
                yield
        finally:
            self.seconds += time.perf_counter() - began


class Restrictions:
    """Those of all requests under way.

    Args:
        slow_calls: told how long grammars take.
    """

    def __init__(self, vocab_size: int, slow_calls: SlowCalls) -> None:
        self._vocab_size, self._slow_calls = vocab_size, slow_calls
        self._known: dict[str, Restriction] = {}

    def add(self, request: Request, guide: Guide | None) -> None:
        """A request began."""
        if request.restricted:
            self._known[request.id] = Restriction(request, self._vocab_size, guide)
        if guide is not None:
            self._slow_calls.saw(guide.plugin, request.id, guide.seconds)

    def drop(self, request: Request) -> None:
        """It has ended."""
        self._known.pop(request.id, None)

    def ask(self, batch: Batch, slots: Slots) -> tuple[SampleMessage, list[tuple[Request, BaseException]]]:
        """What to choose from a step's logits, and what requests' own code raised, which ends only them."""
        chosen, scored = batch.slots, tuple(score.rows for score in batch.scores)
        if slots.plain[chosen].all():
            return SampleMessage(chosen, batch.rows, scored=scored), []
        rows = []
        for row in slots.restricted[chosen].nonzero()[0].tolist():
            request = slots.requests[chosen[row]]
            if request is not None:  # not ended by the step before
                rows.append((row, request))
        found = self.collect(rows)
        logprobs = None
        if slots.scored[chosen].any():
            asked = np.array([_logprobs(slots.requests[slot]) for slot in chosen.tolist()], np.int32)
            logprobs = asked if (asked >= 0).any() else None  # who asked may have ended with the step before
        wanted = SampleMessage(
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
        return wanted, found.failed

    def collect(self, rows: list[tuple[int, Request]]) -> StepRestrictions:
        """What the requests of these rows may not take, packed. An exception belongs to its own request only."""
        bans: list[tuple[int, int]] = []
        allowed: list[tuple[int, Bitmask]] = []
        guided: list[tuple[int, Bitmask]] = []
        histories: list[History] = []
        failed: list[tuple[Request, BaseException]] = []
        for row, request in rows:
            restriction = self._known[request.id]
            try:
                banned = [(row, token) for token in restriction.bans()]
                mask, history = restriction.guided(), restriction.history(row)
            except BaseException as error:
                failed.append((request, contained(error)))
                continue
            finally:
                self._slow_calls.saw(restriction.plugin, request.id, restriction.seconds)
            bans += banned
            if mask is not None:
                guided.append((row, mask))
            if restriction.allowed is not None:
                allowed.append((row, restriction.allowed))
            if history is not None:
                histories.append(history)
        pairs: Ints = np.array(bans, np.int32).reshape(-1, 2)
        out = Bans(pairs[:, 0], pairs[:, 1]) if bans else None
        return StepRestrictions(out, _masks(allowed), tuple(histories), _masks(guided), failed)


class StepRestrictions(NamedTuple):
    """Of all rows of a step, and what a request's own code raised."""

    bans: Bans | None
    allowed: Masks | None
    histories: tuple[History, ...]
    guided: Masks | None
    failed: list[tuple[Request, BaseException]]


def _logprobs(request: Request | None) -> int:
    return -1 if request is None or request.params.logprobs is None else request.params.logprobs


def _masks(rows: list[tuple[int, Bitmask]]) -> Masks | None:
    if not rows:
        return None
    return Masks(np.array([row for row, _ in rows], np.int32), np.stack([mask for _, mask in rows]))
