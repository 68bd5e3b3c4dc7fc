"""What the scheduler decided for one step, and how the host finds its way back from the step's results."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bestiary.core.runtime.messages import Ints, Scored, StepMessage
from bestiary.core.runtime.request import Request, State
from bestiary.core.runtime.slots import Slots
from bestiary.core.runtime.tap_rows import TappedChunk


@dataclass(frozen=True, slots=True)
class Segment:
    """A chunk of a request's known tokens: ``start … start + count`` run at those positions.

    Args:
        samples: the last of them is the request's last token, so the next one is chosen.
    """

    request: Request
    start: int
    count: int
    samples: bool


@dataclass(frozen=True, slots=True)
class PromptScores:
    """Log-probabilities of the prompt tokens from the place ``first`` on, which a step gives."""

    request: Request
    first: int
    rows: Scored


@dataclass(frozen=True, slots=True)
class Batch:
    """One step.

    Args:
        message: what the ranks are told.
        segments: the chunks, in packed order, after the decodes.
        slots: [n] the slots whose next token is chosen: the decodes', then those of the segments that sample.
        rows: [n] their rows of the step's logits; None: row i is i.
        epochs: [n] the slots' epochs; a slot that has another when the results are read belongs to someone else.
        scores: prompt log-probabilities.
        tapped: whose tensors the step keeps, one for each of ``message.taps``.
    """

    message: StepMessage
    segments: tuple[Segment, ...]
    slots: Ints
    rows: Ints | None
    epochs: Ints
    scores: tuple[PromptScores, ...] = ()
    tapped: tuple[TappedChunk, ...] = ()

    @property
    def number(self) -> int:
        """Of the step, counted from 1."""
        return self.message.number

    @property
    def prompt_tokens(self) -> int:
        """How many tokens of chunks run."""
        return len(self.message.tokens)

    def landed(self, alive: npt.NDArray[np.bool_]) -> list[Request]:
        """The requests of the segments that sample and whose token counts: none that was preempted since.

        Args:
            alive: [n] by ``slots``.
        """
        requests = [segment.request for segment in self.segments if segment.samples]
        counts = alive[len(alive) - len(requests) :].tolist()
        return [request for request, counted in zip(requests, counts, strict=True) if counted]

    def requests(self, slots: Slots) -> list[Request]:
        """The requests of the step that run still, none that was preempted since."""
        same = slots.epoch[self.slots] == self.epochs
        found = [slots.requests[slot] for slot in self.slots[same].tolist()]
        found += [
            segment.request
            for segment in self.segments
            if segment.request.state is State.RUNNING and segment.request.admitted <= self.number
        ]
        return list(dict.fromkeys(request for request in found if request is not None))

    @property
    def num_tokens(self) -> int:
        """T, the tokens that run."""
        return self.message.num_tokens
