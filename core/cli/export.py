"""``bestiary export``: a checkpoint back to Hugging Face's form."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bestiary.core.cli.options import Json, Overwrite, print_json


def export(
    ctx: typer.Context,
    ckpt: Annotated[Path, typer.Argument(help="The checkpoint.")],
    out: Annotated[Path, typer.Argument(help="The Hugging Face directory to make.")],
    dequantize: Annotated[bool, typer.Option(help="Write quantized weights plain, as they are restored.")] = False,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Write a checkpoint as a Hugging Face directory, quantized weights as compressed-tensors has them."""
    from bestiary.converters.export import export as export_to
    from bestiary.core.cli.report import progress
    from bestiary.core.cli.session import session_of

    with progress(silent=json) as steps:
        report = export_to(
            ckpt, out, host=session_of(ctx).host, dequantize=dequantize, overwrite=overwrite, progress=steps
        )
    if json:
        print_json({"directory": str(out), **report.as_dict()})
