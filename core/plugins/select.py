"""Which candidates are loaded: the allow list, version ranges, names claimed twice, an exact list for a child."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bestiary.core.errors import PluginError
from bestiary.core.plugins.discover import SDK, Candidate, given, installed
from bestiary.core.plugins.loading import error
from bestiary.core.plugins.records import PluginRecord, State, clause
from bestiary.core.plugins.registry import clash, matches
from bestiary.core.plugins.requirements import api_range, refusal
from bestiary.core.version import __version__

VARIABLE = "BESTIARY_PLUGINS"
# What can stand in BESTIARY_PLUGINS, in --prefer and in a list for a child process, whose entries may be "module:…".
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")


class Choice(NamedTuple):
    """What would be loaded, before anything is imported.

    Args:
        chosen: installed plugins that may be loaded; what is wrong with one is recorded.
        demanded: plugins that were asked for by name; what is wrong with one is raised.
        records: of those that are left out, with the reason.
    """

    chosen: tuple[Candidate, ...]
    demanded: tuple[Candidate, ...]
    records: tuple[PluginRecord, ...]


def choose(plugins: Sequence[str | object], prefer: Mapping[str, str], only: Sequence[str] | None = None) -> Choice:
    """Find what is installed and decide; the arguments are those of ``PluginHost.load``.

    Raises:
        PluginError: a name of ``only`` or of the allow list is not installed.
    """
    found = installed()
    demanded = [given(plugin, found) for plugin in plugins]
    if only is not None:
        demanded += exactly(only, found, prefer)
        allowed: frozenset[str] | None = frozenset()
    elif (allowed := allowed_names()) is not None:
        check_names(allowed, found)
    chosen, records = sift(found, allowed, prefer)
    wanted = tuple(dict.fromkeys(demanded))
    return Choice(tuple(one for one in chosen if one not in wanted), wanted, tuple(records))


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
        if allowed is not None and not candidate.own and candidate.name not in allowed:
            records.append(_record(candidate, "skipped", f"not named in {VARIABLE}"))
        elif (winner := _preferred(candidate, rivals, prefer)) is not None:
            records.append(_record(candidate, "skipped", f"the name is preferred from {winner.origin}"))
        elif (problem := _rivalry(candidate, rivals, prefer) or inadmissible(candidate)) is not None:
            records.append(_record(candidate, "refused", clause(problem), problem))
        else:
            chosen.append(candidate)
    return chosen, records


def inadmissible(candidate: Candidate) -> PluginError | None:
    """Why the candidate's metadata keeps it out: its name is none, or its range does not admit this bestiary."""
    if candidate.own or candidate.distribution is None:
        return None
    if not _NAME.fullmatch(candidate.name):
        hint = "letters, digits, '.', '_' and '-' make a name; tell its author"
        return error(candidate, "E-PLG-NAME", "its entry point's name can't be used", hint)
    if (reason := refusal(candidate.distribution, __version__)) is None:
        return None
    return error(candidate, "E-PLG-VERSION", reason, f"pip install --upgrade {candidate.origin.distribution} bestiary")


def exactly(only: Sequence[str], found: Sequence[Candidate], prefer: Mapping[str, str]) -> list[Candidate]:
    """The candidates behind another host's ``plugin_names``, the SDK's own left out.

    Raises:
        PluginError: this process can't load one of them.
    """
    candidates = []
    for reference in only:
        form, _, name = reference.rpartition(":")
        known = [one for one in found if one.reference == reference]
        if any(one.own for one in known):
            continue
        if len(known) > 1 and name in prefer:
            known = [one for one in known if matches(prefer[name], one.origin)]
        if form == "module":
            candidates.append(given(name, tuple(found)))
        elif len(known) == 1:
            candidates += known
        else:
            problem = "claimed twice" if known else "passed as an object" if form == "object" else "not installed here"
            hint = "every process of an engine loads its parent's plugins; pass modules that a child can import"
            raise PluginError("E-PLG-CHILD", f"plugin {name}", f"this process can't load it: {problem}", hint=hint)
    return candidates


def _preferred(candidate: Candidate, rivals: Sequence[Candidate], prefer: Mapping[str, str]) -> Candidate | None:
    """Of several plugins of one name the one that the user chose; None where that is this one, or nobody chose."""
    if len(rivals) == 1 or candidate.name == SDK or (wanted := prefer.get(candidate.name)) is None:
        return None
    winner = next((one for one in rivals if matches(wanted, one.origin)), candidate)
    return None if winner is candidate else winner


def _rivalry(candidate: Candidate, rivals: Sequence[Candidate], prefer: Mapping[str, str]) -> PluginError | None:
    if len(rivals) == 1 or candidate.own:
        return None
    if candidate.name == SDK:
        return error(candidate, "E-PLG-CONFLICT", f"the entry-point name {SDK!r} is the SDK's own")
    if (wanted := prefer.get(candidate.name)) is not None and matches(wanted, candidate.origin):
        return None
    return clash("plugin", candidate.name, tuple(one.origin for one in rivals))


def _record(candidate: Candidate, state: State, reason: str, problem: PluginError | None = None) -> PluginRecord:
    requires = api_range(candidate.distribution) if candidate.distribution else ""
    return PluginRecord(
        candidate.origin, candidate.module, state, reason, candidate.notes, error=problem, requires=requires
    )
