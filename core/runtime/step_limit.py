"""How many tokens a step may have: fewer after one for which there was no memory, and more again when that has passed."""

from __future__ import annotations

from typing import Final

#: Good steps after which the limit is doubled again.
GOOD: Final = 32
_MOST_GOOD: Final = 4096  # what that grows to: each failure doubles it, so that a lasting shortage costs ever less


class StepLimit:
    """Halved by a failure, doubled after good steps, up to what was configured.

    Args:
        least: tokens that a step may have in any case.
        most: as configured.

    Attributes:
        tokens: most tokens of the next step.
    """

    def __init__(self, least: int, most: int) -> None:
        self.tokens = most
        self._least, self._most = least, most
        self._needed, self._good = GOOD // 2, 0

    def retreat(self) -> bool:
        """A step was too large: halve; False if that can't be done any more."""
        smaller = max(self._least, self.tokens // 2)
        done, self.tokens = smaller < self.tokens, smaller
        self._needed, self._good = min(2 * self._needed, _MOST_GOOD) if done else self._needed, 0
        return done

    def good(self) -> None:
        """A step's results are there."""
        if self.tokens < self._most:
            self._good += 1
            if self._good >= self._needed:
                self.tokens, self._good = min(2 * self.tokens, self._most), 0
