"""What a doctor says. Nothing here imports anything heavy: it must work where everything else is broken."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from bestiary.core.errors import INTERNAL, UNAVAILABLE, BestiaryError
from bestiary.core.plugins.resolve import describe

#: ``ok`` and ``note`` say what is; ``warning``: it works, but look at it; ``error``: something can't be used; ``failed``:
#: the examination itself broke.
Level = Literal["ok", "note", "warning", "error", "failed"]


@dataclass(frozen=True)
class Finding:
    """One line: what it is about, what was found, and how bad that is."""

    subject: str
    text: str
    level: Level = "ok"


@dataclass(frozen=True)
class Section:
    """Findings of one kind."""

    name: str
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Report:
    """All sections."""

    sections: tuple[Section, ...]

    def levels(self) -> set[Level]:
        """The levels that occur."""
        return {finding.level for section in self.sections for finding in section.findings}

    @property
    def exit_status(self) -> int:
        """0; 69 where something can't be used; 70 where a section could not be examined."""
        if "failed" in self.levels():
            return INTERNAL
        return UNAVAILABLE if "error" in self.levels() else 0


def section(name: str, examine: Callable[[], Iterable[Finding]]) -> Section:
    """What an examination finds, up to where it breaks: that becomes its last finding, and the others go on."""
    found: list[Finding] = []
    try:
        found.extend(examine())
    except KeyboardInterrupt:
        raise
    except BestiaryError as error:
        found.append(Finding(name, str(error), "error"))
    except BaseException as error:  # a broken library may raise anything
        found.append(Finding(name, f"can't be examined: {describe(error)}", "failed"))
    return Section(name, tuple(found))
