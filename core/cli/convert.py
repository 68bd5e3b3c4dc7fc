"""``bestiary convert``: foreign weights to a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bestiary.core.cli.options import Json, Overwrite, print_json


def convert(
    ctx: typer.Context,
    src: Annotated[str, typer.Argument(help="HF directory, GGUF file or hub id.")],
    out: Annotated[Path, typer.Argument(help="The checkpoint to make.")],
    dtype: Annotated[str, typer.Option(help="Dtype of the weights: auto keeps the source's.")] = "auto",
    quantize: Annotated[
        str | None,
        typer.Option(
            metavar="RULES", help="Quantize on the way: which method weights get, as for 'bestiary quantize'."
        ),
    ] = None,
    keep_quantized: Annotated[
        bool, typer.Option(help="Keep the quantized weights of a GGUF (Q4_0, Q4_1, Q8_0) as they are.")
    ] = False,
    allow_nonfinite: Annotated[bool, typer.Option(help="Convert weights that hold NaN or infinity.")] = False,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Convert a model to a portable checkpoint."""
    from bestiary.converters.convert import convert as convert_to
    from bestiary.core.cli.report import progress
    from bestiary.core.cli.session import session_of
    from bestiary.core.errors import UsageError
    from bestiary.core.source import fetch, recognise

    session = session_of(ctx)
    source = recognise(src, session.host)
    if source.kind in ("checkpoint", "engine"):
        hint = "'bestiary build' makes an engine of a checkpoint; 'bestiary export' goes back to Hugging Face"
        raise UsageError("E-CLI-SOURCE", source.name, f"is {_a(source.kind)} already", hint=hint)
    with progress(silent=json) as steps:
        path = source.path or fetch(src, steps)
        report = convert_to(
            path,
            out,
            host=session.host,
            dtype=dtype,
            quantize=quantize,
            keep_quantized=keep_quantized,
            allow_nonfinite=allow_nonfinite,
            overwrite=overwrite,
            progress=steps,
        )
    if json:
        print_json({"checkpoint": str(out), **report.as_dict()})


def _a(kind: str) -> str:
    return "an engine" if kind == "engine" else f"a {kind}"
