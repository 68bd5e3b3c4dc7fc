"""How much of a prompt may run beside decoding streams, so that nobody who reads along sees a gap. Imports no torch."""

from __future__ import annotations

import math
from typing import Final

#: A step with a prompt's chunk in it may take so many times what a step without takes. Below the 3 that readers are
#: promised, because a step's time is predicted, not known.
STRETCH: Final = 2.0
#: And so many times what a step without took when the last prompt was admitted: the streams' contexts grow meanwhile, and
#: their readers compare with what they had.
CEILING: Final = 2.5
#: Of a step that only decodes, what a chunk may add in any case.
FLOOR: Final = 0.25
#: Steps with a chunk between two that only decode, which show what the streams cost by now: their contexts grow.
LOOK_EVERY: Final = 16
_FIRST: Final = 16.0  # tokens while nothing is known: a stream that has just begun must not wait for a guess
_LEAST: Final = 4.0  # tokens that run in any case, so that a prompt comes to its end
_NEWEST: Final = 0.2  # weight of a decode step that follows another
_LOOK: Final = 0.5  # of one that follows steps with chunks


class Pace:
    """Learns from the steps' times how many prompt tokens take as long as the decodes beside them.

    No model of a step's cost: the number follows what was seen, by at most a half a step, so it grows out of a chunk's fixed
    costs, shrinks with the context behind a chunk, and forgets a step that something else on the machine delayed.
    """

    def __init__(self) -> None:
        self._decode: float | None = None  # seconds of a step that only decodes
        self._before = math.inf  # the same when the last prompt was admitted
        self._tokens = _FIRST
        self._mixed = 0  # steps since the last one that only decoded

    def chunk(self) -> int:
        """Most prompt tokens that may run in the next step, beside streams; 0 where the streams' own cost is to be seen."""
        return 0 if self._mixed >= LOOK_EVERY else int(self._tokens)

    def admitted(self) -> None:
        """A prompt begins to run: those who read along now are promised something about it."""
        self._before = math.inf if self._decode is None else self._decode

    def saw(self, decodes: int, prompt_tokens: int, seconds: float) -> None:
        """A step took so long."""
        if not prompt_tokens:
            weight = _LOOK if self._mixed else _NEWEST
            self._decode = seconds if self._decode is None else self._decode + weight * (seconds - self._decode)
            self._mixed = 0
            return
        self._mixed = self._mixed + 1 if decodes else 0
        if self._decode is None:
            return
        allowed = max(FLOOR * self._decode, min(STRETCH * self._decode, CEILING * self._before) - self._decode)
        added = seconds - self._decode if decodes else seconds
        # As if each token cost the same: too few where a chunk has fixed costs, and then the next step tells more.
        fit = prompt_tokens * allowed / added if added > 0 else 2 * self._tokens
        if fit < self._tokens and prompt_tokens < self._tokens / 2 and added <= allowed:
            return  # the end of a prompt: mostly fixed costs, and nobody saw a gap
        fit = min(max(fit, self._tokens / 2), 2 * self._tokens)
        # Dearer tokens than thought are believed at once, cheaper ones slowly.
        self._tokens = max(_LEAST, fit if fit < self._tokens else (fit + self._tokens) / 2)
