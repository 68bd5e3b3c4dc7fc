"""What a check measured, kept beside its outcome."""

from __future__ import annotations

from typing import Any


class Findings:
    """Measurements of one check of one config. They travel in the ``user_properties`` of pytest's report.

    Args:
        properties: pytest's list of (name, value).
    """

    __slots__ = ("_properties",)

    def __init__(self, properties: list[tuple[str, Any]]) -> None:
        self._properties = properties

    def within(self, what: str, error: float, most: float) -> None:
        """Note an error, and fail if it is larger than allowed, or no number."""
        known = dict(self._properties)
        # The worst of a check's errors, by what was allowed for it, is the one that is shown.
        if "error" not in known or not error / most <= known["error"] / known["tolerance"]:
            self._put(error=error, tolerance=most)
        self._count()
        assert error <= most, f"{what}: off by {error:.3g}, and {most:.3g} is allowed"

    def require(self, holds: bool, what: str) -> None:
        """Fail, with these words, if something does not hold."""
        self._count()
        assert holds, what

    @property
    def looked(self) -> int:
        """How often the check looked whether something is as it should be."""
        return int(dict(self._properties).get("looked", 0))

    def ties(self, ties: int, tokens: int) -> None:
        """Note greedy tokens that the reference finds as likely as its own choice."""
        known = dict(self._properties)
        self._put(ties=known.get("ties", 0) + ties, tokens=known.get("tokens", 0) + tokens)

    def note(self, text: str) -> None:
        """Note a sentence for the reader of the table."""
        self._put(note=text)

    def refused(self, reason: str) -> None:
        """Note that the config can't be run this way and says so, which is right."""
        self._count()
        self._put(refused=reason)

    def _count(self) -> None:
        self._put(looked=self.looked + 1)

    def _put(self, **values: Any) -> None:
        kept = [pair for pair in self._properties if pair[0] not in values]
        self._properties[:] = [*kept, *values.items()]
