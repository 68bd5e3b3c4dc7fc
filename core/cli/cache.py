"""``bestiary cache``: what ``run`` keeps in BESTIARY_HOME."""

from __future__ import annotations

from typing import Annotated

import typer

from bestiary.core.cli.options import Json, print_json

app = typer.Typer(help="Show and free what 'run' keeps.", no_args_is_help=True, add_completion=False)


@app.command("ls")
def ls(json: Json = False) -> None:
    """List cached checkpoints and engines."""
    from bestiary.core.cli.report import table
    from bestiary.core.home import Home, gib

    home = Home()
    entries = home.entries()
    if json:
        print_json({"home": str(home.root), "entries": [entry.as_dict() for entry in entries]})
        return
    rows = [(entry.kind[:-1], entry.name, gib(entry.size), _age(entry.age), entry.source) for entry in entries]
    table(("kind", "name", "size", "age", "from"), rows)
    print(f"\n{home.root}: {len(entries)} entries")


@app.command("rm")
def rm(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Names, or their beginnings.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Remove everything.")] = False,
    json: Json = False,
) -> None:
    """Remove entries from the cache."""
    from bestiary.core.errors import UsageError
    from bestiary.core.home import Home, gib

    if every == bool(names):
        raise UsageError("E-CLI-CACHE", "cache rm", "needs names or --all, and not both")
    removed = Home().remove_all() if every else Home().remove(names or [])
    if json:
        print_json({"removed": [entry.as_dict() for entry in removed]})
        return
    for entry in removed:
        print(f"removed {entry.kind[:-1]} {entry.name} ({gib(entry.size)})")


def _age(seconds: float) -> str:
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} s"
