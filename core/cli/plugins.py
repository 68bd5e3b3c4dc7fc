"""``bestiary plugins``: what is installed, what came of it, who quarrels."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from bestiary.core.cli.options import Json, print_json

if TYPE_CHECKING:
    from bestiary.core.plugins import PluginRecord

# Kinds of names that go without saying where the others are shown.
_IMPLIED = ("architecture", "gguf architecture")
_FEW = 2


def plugins(
    ctx: typer.Context,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show every name that a plugin provides.")] = False,
    json: Json = False,
) -> None:
    """List plugins, loaded and broken, with what they provide."""
    from bestiary.core.cli.report import seconds, table, width
    from bestiary.core.cli.session import session_of

    host = session_of(ctx).host
    records, conflicts = host.records(), host.conflicts()
    if json:
        print_json({"plugins": [one.as_dict() for one in records], "conflicts": [one.as_dict() for one in conflicts]})
        return
    rows = [
        (one.origin.plugin, str(one.origin), one.requires or "any", seconds(one.seconds or None), _outcome(one))
        for one in records
    ]
    table(("plugin", "distribution", "API", "load", "provides"), rows, total=width())
    told: set[str] = set()
    for record in records:
        if verbose:
            print(f"\n{record.origin.plugin} ({record.origin}, {record.module})")
            for kind, names in record.provides.items():
                print(_wrapped(f"{kind}: {', '.join(names)}", width(), "  "))
        # Why a plugin was skipped has been said in its row.
        for text in (record.reason if record.state != "skipped" else "", *record.notes):
            if text and (line := f"{record.origin.plugin}: {text}") not in told:
                told.add(line)  # of two that quarrel, both have the same reason
                print("\n" + _wrapped(line, width(), ""))
    for conflict in conflicts:
        claimants = " and ".join(str(origin) for origin in conflict.claimants)
        decided = f"{conflict.chosen} has it" if conflict.chosen else f"decide with --prefer {conflict.name}=DIST"
        print("\n" + _wrapped(f"{conflict.kind} {conflict.name!r} is claimed by {claimants}; {decided}", width(), ""))


def _outcome(record: PluginRecord) -> str:
    if record.state != "loaded":
        return f"{record.state}: {record.reason}"
    return provided(record.provides) or "nothing"


def provided(provides: Mapping[str, tuple[str, ...]]) -> str:
    """The names that a plugin registered, in short: all models, of other kinds a count where there are many.

    >>> provided({"op": ("a::x", "a::y", "a::z"), "model": ("a", "b", "c"), "reader": ("r",)})
    'model a, b, c; 3 ops; reader r'
    """
    shown = {kind: names for kind, names in provides.items() if kind not in _IMPLIED}
    many = {kind for kind, names in shown.items() if kind != "model" and len(names) > _FEW}
    order = sorted(shown, key=lambda kind: (kind != "model", kind not in many))
    return "; ".join(f"{len(shown[k])} {k}s" if k in many else f"{k} {', '.join(shown[k])}" for k in order)


def _wrapped(text: str, columns: int, indent: str) -> str:
    return textwrap.fill(text, columns, initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False)
