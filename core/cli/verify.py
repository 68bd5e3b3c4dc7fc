"""``bestiary verify``: is a checkpoint or an engine whole?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bestiary.core.cli.options import Json, print_json


def verify(
    ctx: typer.Context,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint or an engine.")],
    json: Json = False,
) -> None:
    """Check digests, and that every tensor the model needs is there."""
    from bestiary.core.checkpoint.verify import verify as check
    from bestiary.core.cli.report import progress
    from bestiary.core.cli.session import session_of

    with progress(silent=json) as steps:
        report = check(directory, host=session_of(ctx).host, progress=steps, unserved=True)
    if json:
        print_json({"directory": str(directory), **report.as_dict()})
    else:
        print(f"{directory.name}: {report.kind} of {report.model}, complete and unchanged")
