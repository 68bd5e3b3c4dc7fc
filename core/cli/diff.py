"""``bestiary diff``: where a model leaves its reference, and who is to blame."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bestiary.core.cli.options import Building, Json, print_json, spread


@spread
def diff(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="HF directory, GGUF file, hub id, checkpoint or engine.")],
    *,
    against: Annotated[
        str,
        typer.Option(
            metavar="hf|reference|PATH",
            help="transformers, our own references, or an engine, a checkpoint (in reference mode) or an HF directory.",
        ),
    ] = "hf",
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A prompt a line, or a file in .jsonl as `generate` reads it.")
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="A prompt; repeatable.")] = None,
    tokens: Annotated[int | None, typer.Option(metavar="N", help="N random tokens instead.")] = None,
    seed: Annotated[int, typer.Option(help="Of random tokens and random weights.")] = 0,
    weights: Annotated[
        str, typer.Option(metavar="auto|random", help="random: make weights from config.json.")
    ] = "auto",
    reference: Annotated[bool, typer.Option("--reference", help="Our side in reference mode, too.")] = False,
    all_rows: Annotated[bool, typer.Option("--all", help="Show every tensor, also of deep models.")] = False,
    building: Building,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it as a page.")] = None,
    json: Json = False,
) -> None:
    """Compare a model with transformers, or any two of engine, checkpoint and transformers, tensor by tensor."""
    from bestiary.core.cli.report import progress, table
    from bestiary.core.cli.session import session_of
    from bestiary.core.diff import picture, run, text
    from bestiary.core.diff.open import Request
    from bestiary.core.diff.report import DiffReport
    from bestiary.core.errors import INTERNAL, OutputError, UsageError
    from bestiary.core.reports.page import plotly

    if not 0 <= seed < 2**64:
        raise UsageError("E-USE-SEED", "--seed", "is out of range", found=str(seed), expected="0 to 2⁶⁴ - 1")
    if weights not in ("auto", "random"):
        raise UsageError("E-USE-WEIGHTS", "--weights", "unknown", found=repr(weights), expected="auto or random")
    if html is not None:
        plotly()
        if html.is_dir() or not html.absolute().parent.is_dir():  # said before hours of work
            raise OutputError(
                "E-OUT-FILE", html.name, "can't be written", hint="name a file in a directory that is there"
            )
    request = Request(model, against, building.said(), reference, weights == "random", seed)
    named = [*(prompt or ()), *(_prompts(prompts) if prompts is not None else ())]
    with progress(silent=json) as steps:
        result = run.diff(request, run.Texts(named, tokens, seed), host=session_of(ctx).host, progress=steps)
    if html is not None:
        picture.page(result).write(html)
    if json:
        print_json(DiffReport.of(result).as_dict())
    else:
        print("\n".join([*text.heading(result), ""]))
        for failure, distribution in zip(result.failures, result.failed_by, strict=True):
            print("\n".join(text.failed_lines(failure, distribution)))
            if failure.outcomes:
                print()
                table(text.BISECTION, text.ways_past(failure))
            print()
        shown = text.rows_shown(result.comparison.rows, everything=all_rows)
        if shown:
            table(text.HEADINGS, [text.cells(label, row) for label, row in shown])
        if result.comparison.spoilers:
            print()
            table(text.SPOILED, text.spoiled(result))
        print("\n".join(text.first_lines(result)))
        if result.outcomes:
            print()
            table(text.BISECTION, text.bisection(result))
            print()
        if result.quantization is not None:
            table(text.COSTS, text.costs(result))
            print()
            if found := text.strange(result):
                table(text.STRANGE, found)
            else:
                print(text.judged(result))
            print()
        print(text.verdict(result))
    if result.verdict.blame != "nothing":
        raise typer.Exit(INTERNAL)


def _prompts(file: Path) -> list[Any]:
    from bestiary.core.cli.generate import read_prompts
    from bestiary.core.errors import MissingInputError

    found = read_prompts(file)
    if not found:
        raise MissingInputError("E-CLI-PROMPTS", file.name, "has no prompt", expected="a prompt on each line")
    return found
