"""``bestiary quality``: models' predictions of a text beside a reference's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bestiary.core.cli.options import Building, print_json, spread


@spread
def quality(
    ctx: typer.Context,
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL…", help="HF directories, GGUF files, hub ids, checkpoints or engines.")
    ],
    *,
    against: Annotated[
        str,
        typer.Option(metavar="hf|MODEL", help="The reference, of the same vocabulary: another model, or transformers."),
    ],
    text: Annotated[Path, typer.Option(metavar="FILE", help="A text in UTF-8.")],
    against_dtype: Annotated[
        str | None,
        typer.Option(help="Compute dtype of a reference that is built for this; float32 shows all that is lost."),
    ] = None,
    window: Annotated[int, typer.Option(min=2, help="Tokens that are run together.")] = 512,
    max_tokens: Annotated[int | None, typer.Option(min=2, help="Only the text's first so many tokens.")] = None,
    worst: Annotated[int, typer.Option(min=0, help="How many of the tokens that differ most to show.")] = 10,
    building: Building,
    json: Annotated[
        str | None, typer.Option(metavar="FILE|-", help="Write the result as JSON; - to stdout alone.")
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with plots.")] = None,
) -> None:
    """Perplexity of both, mean KL divergence, top-1 agreement and the worst tokens.

    The reference is run once for all models.
    """
    from bestiary.core.checkpoint.files import json_bytes
    from bestiary.core.checkpoint.transaction import check_file, new_file
    from bestiary.core.cli.report import progress, table
    from bestiary.core.cli.session import session_of
    from bestiary.core.quality.examine import examine
    from bestiary.core.quality.open import open_sides
    from bestiary.core.quality.page import page
    from bestiary.core.reports.page import plotly
    from bestiary.core.text.files import read_text
    from bestiary.core.text.tokenizer import Tokenizer

    for target in (html, None if json in (None, "-") else Path(str(json))):
        if target is not None:
            check_file(target)
    if html is not None:
        plotly()
    host, written = session_of(ctx).host, read_text(text)
    with progress(silent=json == "-") as steps:
        ours, reference, size = open_sides(
            models,
            against,
            said=building.said(),
            against_dtype=against_dtype,
            window=window,
            host=host,
            progress=steps,
        )
        report, rows = examine(
            ours,
            reference,
            Tokenizer.load(ours[0].engine.directory),
            written,
            name=text.name,
            window=size,
            max_tokens=max_tokens,
            worst=worst,
            progress=steps,
        )
    if html is not None:
        page(report, rows).write(html)
    if json == "-":
        print_json(report.as_dict())
        return
    if json is not None:
        new_file(Path(json), json_bytes(report.as_dict()))
    table(*report.table())
    print(f"\n{report.begin.sentence()}")
    if len(report.models) == 1 and report.models[0].worst:
        print()
        table(report.models[0].WORST, report.models[0].worst_lines())
