"""Packs what the scheduler chose into one step, within its budgets of tokens and rows of logits."""

from __future__ import annotations

import numpy as np

from bestiary.core.runtime.batch import Batch, PromptScores, Segment
from bestiary.core.runtime.messages import EMPTY, Ints, Opened, Scored, StepMessage, TableChanges, TapRows
from bestiary.core.runtime.request import Request
from bestiary.core.runtime.slots import Slots
from bestiary.core.runtime.tap_rows import TappedChunk


class Packing:
    """A step in the making.

    Every running request has a row of logits for itself; what ``max_rows`` holds beyond that is for prompt log-probabilities.

    Attributes:
        budget: tokens that still fit.
    """

    def __init__(self, slots: Slots, max_num_tokens: int, max_rows: int) -> None:
        self._slots = slots
        self.budget = max_num_tokens
        self._extra_rows = max(0, max_rows - slots.count)
        self._decodes: Ints = EMPTY
        self._segments: list[Segment] = []
        self._opened: list[Opened] = []

    @property
    def empty(self) -> bool:
        """Nothing runs."""
        return not (len(self._decodes) or self._segments)

    def decode(self, slots: Ints) -> None:
        """Run the last token of each slot."""
        self._decodes = slots
        self.budget -= len(slots)

    def most(self, request: Request, start: int, count: int) -> int:
        """As many of ``count`` tokens from ``start`` on as the budgets allow."""
        count = min(count, self.budget)
        if _wants_scores(request, start):
            count = min(count, 1 + self._extra_rows)
        return count

    def chunk(self, segment: Segment) -> None:
        """Run a segment after the decodes."""
        self._segments.append(segment)
        self.budget -= segment.count
        if _wants_scores(segment.request, segment.start):
            self._extra_rows -= segment.count - 1

    def batch(self, number: int, opened: tuple[Opened, ...], changes: tuple[TableChanges, ...]) -> Batch:
        """The step.

        Args:
            opened: the slots that changed hands since the last one.
            changes: of the block tables since the last one.
        """
        decodes, slots = self._decodes, self._slots
        if not self._segments:
            ones = np.ones(len(decodes), np.int32)
            longest = int(slots.stored[decodes].max())
            taps, tapped = self._taps()
            message = StepMessage(number, decodes, ones, len(decodes), EMPTY, None, opened, changes, longest, taps)
            return Batch(message, (), decodes, None, slots.epoch[decodes], (), tapped)
        chunks = [s.request.slot for s in self._segments]
        sequences = np.concatenate((decodes, np.array(chunks, np.int32)))
        counts = np.ones(len(sequences), np.int32)
        counts[len(decodes) :] = [s.count for s in self._segments]
        tokens = np.concatenate([slots.tokens[s.request.slot, s.start : s.start + s.count] for s in self._segments])
        rows, chosen, chosen_rows, scores = self._rows()
        taps, tapped = self._taps()
        message = StepMessage(
            number,
            sequences,
            counts,
            len(decodes),
            tokens,
            rows,
            opened,
            changes,
            int(slots.stored[sequences].max()),
            taps,
        )
        return Batch(message, tuple(self._segments), chosen, chosen_rows, slots.epoch[chosen], scores, tapped)

    def _taps(self) -> tuple[tuple[TapRows, ...], tuple[TappedChunk, ...]]:
        """Which of the packed tokens are of requests that keep tensors, and whose they are."""
        slots = self._slots
        if not slots.num_tapped:
            return (), ()
        rows: list[TapRows] = []
        chunks: list[TappedChunk] = []

        def keep(request: Request | None, first: int, start: int, count: int) -> None:
            if request is not None and request.tapped is not None:
                rows.append(TapRows(first, first + count, request.tapped.names))
                chunks.append(TappedChunk(request.tapped, start))

        for row in slots.tapped[self._decodes].nonzero()[0].tolist():
            slot = self._decodes[row]
            keep(slots.requests[slot], row, int(slots.stored[slot]) - 1, 1)
        at = len(self._decodes)
        for segment in self._segments:
            keep(segment.request, at, segment.start, segment.count)
            at += segment.count
        return tuple(rows), tuple(chunks)

    def _rows(self) -> tuple[Ints, Ints, Ints, tuple[PromptScores, ...]]:
        """The rows of logits; the slots whose next token is chosen, and their rows among those; prompt scores."""
        at = len(self._decodes)
        rows, chosen, chosen_rows = list(range(at)), self._decodes.tolist(), list(range(at))
        scores: list[PromptScores] = []
        for segment in self._segments:
            request, start, end = segment.request, segment.start, segment.start + segment.count
            if _wants_scores(request, start):
                first = max(start, request.num_scored - 1)
                targets = request.tokens[first + 1 : min(end, request.prompt_length - 1) + 1]
                if len(targets):
                    best = request.params.prompt_logprobs or 0
                    scores.append(PromptScores(request, first + 1, Scored(len(rows), targets.copy(), best)))
                    rows.extend(range(at + first - start, at + first - start + len(targets)))
            if segment.samples:
                chosen.append(request.slot)
                chosen_rows.append(len(rows))
                rows.append(at + segment.count - 1)
            at += segment.count
        as_array = [np.array(values, np.int32) for values in (rows, chosen, chosen_rows)]
        return as_array[0], as_array[1], as_array[2], tuple(scores)


def _wants_scores(request: Request, start: int) -> bool:
    return request.params.prompt_logprobs is not None and start < request.prompt_length - 1
