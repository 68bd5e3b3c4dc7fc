"""``bestiary lock``: write down the plugin set with the code of each, or show how it differs from what was written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bestiary.core.cli.options import Json, print_json
from bestiary.core.errors import UNAVAILABLE


def lock(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The lock.")] = Path("bestiary.lock"),
    check: Annotated[bool, typer.Option("--check", help="Write nothing; show what is not as FILE has it.")] = False,
    json: Json = False,
) -> None:
    """Write the plugins that would be loaded, with versions and digests of their code, to FILE."""
    from bestiary.core.checkpoint.transaction import new_file
    from bestiary.core.cli.session import session_of
    from bestiary.core.plugins import lockfile

    then = lockfile.read(file) if check else {}
    now = lockfile.lock(session_of(ctx).candidates())
    if not check:
        new_file(file, lockfile.text(now).encode())
    differences = lockfile.drift(then, now) if check else ()
    if json:
        found = [vars(one) for one in differences]
        print_json({"lock": str(file), "distributions": {name: vars(one) for name, one in now.items()}, "drift": found})
    else:
        for difference in differences:
            print(difference)
        outcome = f"{len(differences)} differ" if differences else "as locked" if check else "locked"
        print(f"{file.name}: {len(then if check else now)} distributions, {outcome}")
    if differences:
        raise typer.Exit(UNAVAILABLE)
