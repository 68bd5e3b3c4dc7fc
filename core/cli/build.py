"""``bestiary build``: a checkpoint to an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bestiary.core.cli.options import Building, Json, Overwrite, print_json, spread


@spread
def build(
    ctx: typer.Context,
    ckpt: Annotated[Path, typer.Argument(help="The checkpoint.")],
    out: Annotated[Path, typer.Argument(help="The engine to make.")],
    *,
    explain: Annotated[bool, typer.Option("--explain", help="Print which kernel each call got, and why.")] = False,
    overwrite: Overwrite = False,
    building: Building,
    json: Json = False,
) -> None:
    """Build an engine from a checkpoint."""
    from bestiary.core.cli.report import progress
    from bestiary.core.cli.session import session_of
    from bestiary.core.engine.build import build as build_engine
    from bestiary.core.errors import UsageError
    from bestiary.core.source import recognise

    session, options = session_of(ctx), building.options()
    source = recognise(ckpt, session.host)
    if source.kind != "checkpoint":
        hint = "'bestiary convert' makes a checkpoint; 'bestiary run' does all steps at once"
        raise UsageError("E-CLI-CHECKPOINT", source.name, "not a checkpoint", hint=hint)
    with progress(silent=json) as steps:
        report = build_engine(ckpt, out, host=session.host, options=options, overwrite=overwrite, progress=steps)
    if json:
        print_json({"engine": str(out), **report.as_dict()})
    elif explain:
        print(report.explain())
