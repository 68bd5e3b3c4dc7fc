"""What the host remembers of plugins: where a thing came from, what became of a plugin, who quarrels over a name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from bestiary.core.errors import BestiaryError

State = Literal["loaded", "broken", "refused", "skipped"]


@dataclass(frozen=True)
class Origin:
    """Who registered something: the plugin's name, its distribution and that one's version."""

    plugin: str
    distribution: str
    version: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"


@dataclass(frozen=True)
class PluginRecord:
    """What became of one plugin.

    Args:
        origin: its name, distribution and version.
        module: where it was imported from, or would have been.
        state: ``loaded``; ``broken`` (its import or a hook failed); ``refused`` (it doesn't fit this bestiary, or its
            name is claimed twice); ``skipped`` (not on the allow list).
        reason: for all states but ``loaded``, one clause that says why.
        notes: oddities that did not stop it, such as a stale second copy.
        provides: the names it registered, by kind.
        error: the exception behind ``broken``.
        requires: the range of bestiary that its distribution asks for, ``>=0.1,<0.2``; empty where it asks for none.
        seconds: what its import and its hooks took.
    """

    origin: Origin
    module: str
    state: State
    reason: str = ""
    notes: tuple[str, ...] = ()
    provides: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    error: BaseException | None = None
    requires: str = ""
    seconds: float = 0.0

    def as_dict(self) -> dict[str, object]:
        """For ``--json``: everything but the exception object."""
        return {
            "name": self.origin.plugin,
            "distribution": self.origin.distribution,
            "version": self.origin.version,
            "module": self.module,
            "requires": self.requires,
            "load_ms": round(self.seconds * 1000, 1),
            "state": self.state,
            "reason": self.reason,
            "notes": list(self.notes),
            "provides": {kind: list(names) for kind, names in self.provides.items()},
        }


@dataclass(frozen=True)
class Conflict:
    """Two or more plugins claim ``name``; ``chosen`` is the distribution that ``prefer`` gave it to, if any."""

    kind: str
    name: str
    claimants: tuple[Origin, ...]
    chosen: str | None = None

    def as_dict(self) -> dict[str, object]:
        """For ``--json``."""
        claimants = [{"plugin": o.plugin, "distribution": o.distribution, "version": o.version} for o in self.claimants]
        return {"kind": self.kind, "name": self.name, "claimants": claimants, "chosen": self.chosen}


def clause(error: BestiaryError) -> str:
    """What is wrong and what to do, without the subject that a record already names."""
    return f"{error.problem} ({error.hint})" if error.hint else error.problem
