"""How long prompts and answers are: one length, a range, or a distribution."""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random

from bestiary.core.errors import UsageError

_FORMS = "128, 32-256, normal:MEAN,SD or lognormal:MEDIAN,SIGMA, the last two with an optional third number, the most"
_NUMBER = r"(\d+(?:\.\d+)?)"
_DRAWN = re.compile(rf"(normal|lognormal):{_NUMBER},{_NUMBER}(?:,(\d+))?")


@dataclass(frozen=True)
class Lengths:
    """A distribution of lengths in tokens, at least 1.

    Args:
        text: as it was written.
        kind: ``uniform`` from ``first`` to ``second``; ``normal`` with mean and standard deviation; ``lognormal`` with the
            median and the standard deviation of the logarithm.
        most: longer ones are cut to it.
    """

    text: str
    kind: str
    first: float
    second: float
    most: int | None = None

    @classmethod
    def parse(cls, text: str, option: str) -> Lengths:
        """Read ``128``, ``32-256``, ``normal:128,32`` or ``lognormal:128,0.6,1024``.

        Raises:
            UsageError: naming the option.
        """
        if match := re.fullmatch(r"(\d+)(?:-(\d+))?", text.strip()):
            low, high = int(match[1]), int(match[2] or match[1])
            if 1 <= low <= high:
                return cls(text, "uniform", low, high)
        elif match := _DRAWN.fullmatch(text.strip()):
            most = int(match[4]) if match[4] else None
            if float(match[2]) >= 1 and (most is None or most >= 1):
                return cls(text, match[1], float(match[2]), float(match[3]), most)
        raise UsageError("E-BENCH-LENGTHS", option, "no lengths", found=repr(text)[:60], expected=_FORMS)

    def draw(self, random: Random) -> int:
        """One length.

        >>> Lengths.parse("32-256", "--input").draw(Random(0))
        248
        """
        if self.kind == "uniform":
            return random.randint(int(self.first), int(self.second))
        if self.kind == "normal":
            value = random.gauss(self.first, self.second)
        else:
            value = self.first * random.lognormvariate(0.0, self.second)
        return max(1, round(value) if self.most is None else min(self.most, round(value)))
