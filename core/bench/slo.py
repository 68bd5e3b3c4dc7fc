"""A service level objective: which answers came fast enough."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bestiary.core.bench.records import Record
from bestiary.core.errors import UsageError

_FORM = "ttft=200ms,itl=50ms,total=10s, or some of these"
_TIME = re.compile(r"(\d+(?:\.\d+)?) *(ms|s)")


@dataclass(frozen=True)
class Slo:
    """Most seconds to the first token, a token after it (the answer's mean), and in all; None for no limit."""

    ttft: float | None = None
    itl: float | None = None
    total: float | None = None

    @classmethod
    def parse(cls, text: str) -> Slo:
        """Read ``ttft=200ms,itl=50ms``.

        >>> Slo.parse("ttft=200ms,total=10s")
        Slo(ttft=0.2, itl=None, total=10.0)

        Raises:
            UsageError: it is of another form, or names something twice.
        """
        found: dict[str, float] = {}
        for part in text.split(","):
            name, _, value = (word.strip() for word in part.partition("="))
            match = _TIME.fullmatch(value)
            if name not in ("ttft", "itl", "total") or name in found or match is None or not float(match[1]):
                raise UsageError("E-BENCH-SLO", "--slo", "not an objective", found=repr(text)[:60], expected=_FORM)
            found[name] = float(match[1]) / (1000 if match[2] == "ms" else 1)
        return cls(**found)

    def met(self, record: Record) -> bool:
        """Whether the answer came, whole and in time. An answer of one token has no time between tokens."""
        if record.failed or not record.pieces:
            return False
        limits = ((self.ttft, record.first), (self.itl, record.mean_interval), (self.total, record.total))
        return all(limit is None or seconds is None or seconds <= limit for limit, seconds in limits)
