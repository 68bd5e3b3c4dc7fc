"""Which candidates are loaded: the allow list, version ranges, names claimed twice, an exact list for a child."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from bestiary.core.errors import PluginError
from bestiary.core.plugins.discover import SDK, Candidate
from bestiary.core.plugins.loading import error
from bestiary.core.plugins.records import PluginRecord, State, clause
from bestiary.core.plugins.registry import clash, matches
from bestiary.core.plugins.requirements import refusal
from bestiary.core.version import __version__

VARIABLE = "BESTIARY_PLUGINS"


def allowed_names() -> frozenset[str] | None:
    """The names in ``BESTIARY_PLUGINS``; None where it isn't set and everything installed is loaded."""
    text = os.environ.get(VARIABLE)
    return None if text is None else frozenset(name.strip() for name in text.split(",") if name.strip())


def check_names(wanted: frozenset[str], candidates: Sequence[Candidate]) -> None:
    """Raises PluginError for an allow-listed name that isn't installed, listing those that are."""
    available = sorted({candidate.name for candidate in candidates})
    if missing := sorted(wanted.difference(available)):
        names = ", ".join(repr(name) for name in missing)
        raise PluginError(
            "E-PLG-NOT-INSTALLED",
            VARIABLE,
            f"no plugin {names} is installed",
            hint=f"available: {', '.join(available)}",
        )


def sift(
    candidates: Sequence[Candidate], allowed: frozenset[str] | None, prefer: Mapping[str, str]
) -> tuple[list[Candidate], list[PluginRecord]]:
    """The candidates to import, and a record for each of the others with the reason why not."""
    chosen: list[Candidate] = []
    records: list[PluginRecord] = []
    for candidate in candidates:
        rivals = [one for one in candidates if one.name == candidate.name]
        problem = _rivalry(candidate, rivals, prefer)
        if allowed is not None and not candidate.own and candidate.name not in allowed:
            records.append(_record(candidate, "skipped", f"not named in {VARIABLE}"))
        elif problem is not None:
            records.append(_record(candidate, "refused", clause(problem), problem))
        elif (late := version_problem(candidate)) is not None:
            records.append(_record(candidate, "refused", clause(late), late))
        else:
            chosen.append(candidate)
    return chosen, records


def version_problem(candidate: Candidate) -> PluginError | None:
    """Why the candidate's metadata does not admit this bestiary."""
    if candidate.own or candidate.distribution is None:
        return None
    if (reason := refusal(candidate.distribution, __version__)) is None:
        return None
    return error(candidate, "E-PLG-VERSION", reason, f"pip install --upgrade {candidate.origin.distribution} bestiary")


def _rivalry(candidate: Candidate, rivals: Sequence[Candidate], prefer: Mapping[str, str]) -> PluginError | None:
    if len(rivals) == 1 or candidate.own:
        return None
    if candidate.name == SDK:
        return error(candidate, "E-PLG-CONFLICT", f"the entry-point name {SDK!r} is the SDK's own")
    if (wanted := prefer.get(candidate.name)) is not None and matches(wanted, candidate.origin):
        return None
    return clash("plugin", candidate.name, tuple(one.origin for one in rivals))


def _record(candidate: Candidate, state: State, reason: str, problem: PluginError | None = None) -> PluginRecord:
    return PluginRecord(candidate.origin, candidate.module, state, reason, candidate.notes, error=problem)
