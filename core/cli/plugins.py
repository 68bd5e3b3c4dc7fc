"""``bestiary plugins``: what is installed, what came of it, who quarrels."""

from __future__ import annotations

import typer

from bestiary.core.cli.options import Json, print_json


def plugins(ctx: typer.Context, json: Json = False) -> None:
    """List plugins, loaded and broken, with what they provide."""
    from bestiary.core.cli.report import table
    from bestiary.core.cli.session import session_of

    host = session_of(ctx).host
    records, conflicts = host.records(), host.conflicts()
    if json:
        print_json({"plugins": [one.as_dict() for one in records], "conflicts": [one.as_dict() for one in conflicts]})
        return
    rows = []
    for record in records:
        provides = "; ".join(f"{kind}: {_few(names)}" for kind, names in record.provides.items())
        rows.append((record.origin.plugin, record.origin.distribution, record.origin.version, record.state, provides))
    table(("plugin", "distribution", "version", "state", "provides"), rows)
    for record in records:
        for text in (record.reason, *record.notes):
            if text:
                print(f"\n{record.origin.plugin}: {text}")
    for conflict in conflicts:
        claimants = " and ".join(str(origin) for origin in conflict.claimants)
        decided = f"{conflict.chosen} has it" if conflict.chosen else f"decide with --prefer {conflict.name}=DIST"
        print(f"\n{conflict.kind} {conflict.name!r} is claimed by {claimants}; {decided}")


def _few(names: tuple[str, ...], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
