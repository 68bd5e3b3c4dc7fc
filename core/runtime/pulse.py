"""The heartbeat: which step is under way and since when. The thread that steps writes it, any other may read it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from bestiary.core.runtime.batch import Batch

#: A step like none before it may compile kernels or record a graph: it has so many times as long.
FIRST: Final = 10.0
#: A step may always take so many times as long as the longest like it, on however slow a device.
SLACK: Final = 3.0

_Kind = tuple[int, int]  # steps are alike whose decodes and prompt tokens lie between the same powers of two


class Pulse:
    """Since when the loop is in a step, and what with.

    Args:
        clock: seconds that only grow.

    Attributes:
        began: when the step under way began; None between steps.
        ended: when the last one ended; None before the first.
        late: a watchdog has found the step under way too long.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.began: float | None = None
        self.ended: float | None = None
        self.late = False
        self._under_way: tuple[Batch, ...] = ()
        self._landed: list[_Kind] = []
        self._longest: dict[_Kind, float] = {}

    def begin(self, flight: Batch | None) -> None:
        """A step begins. ``flight``: what was launched before and is to be read."""
        self._under_way = () if flight is None else (flight,)
        self.began = self.clock()

    def launches(self, batch: Batch) -> None:
        """The step is decided."""
        self._under_way = (*self._under_way, batch)

    def landed(self, batch: Batch) -> None:
        """The results of a step were read."""
        self._landed.append(_kind(batch))

    def end(self) -> None:
        """It is over, well or not."""
        self.ended = now = self.clock()
        taken = now - (now if self.began is None else self.began)
        for kind in self._landed:
            self._longest[kind] = max(taken, self._longest.get(kind, 0.0))
        self._landed.clear()
        self.began, self.late = None, False

    def allowed(self, seconds: float) -> float:
        """How long the step under way may take where an ordinary one may take ``seconds``."""
        longest = [self._longest.get(_kind(batch)) for batch in self._under_way]
        known = [one for one in longest if one is not None]
        return seconds * FIRST if len(known) < len(longest) else max([seconds, *(SLACK * one for one in known)])

    def describe(self) -> str:
        """What the loop is at."""
        steps = [
            f"step {batch.number} ({len(batch.message.slots)} requests, {batch.num_tokens} tokens, "
            f"{batch.prompt_tokens} of these of prompts)"
            for batch in self._under_way
        ]
        return " and ".join(steps) or "a step that is being decided"


def _kind(batch: Batch) -> _Kind:
    return batch.message.decodes.bit_length(), batch.prompt_tokens.bit_length()
