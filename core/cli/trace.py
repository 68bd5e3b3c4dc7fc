"""``bestiary trace``: every op call of a run, with kernel, shapes, time, and what the device could do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bestiary.core.cli.options import Building, Json, Tokenizer, print_json, spread

if TYPE_CHECKING:
    from bestiary import LLM
    from bestiary.core.observe.record import Recording

_RANDOM = 64  # tokens of a prompt that nobody gave


@spread
def trace(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="HF directory, GGUF file, hub id, checkpoint or engine.")],
    prompt: Annotated[str | None, typer.Argument(help="The prompt, as it is; without it, random token ids.")] = None,
    *,
    max_tokens: Annotated[
        int, typer.Option("-n", "--max-tokens", min=1, help="Tokens of each answer; it does not end before.")
    ] = 8,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="So many copies of the prompt run together.")] = 1,
    prompt_tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", help=f"Random token ids for a prompt; {_RANDOM} without PROMPT.")
    ] = None,
    every_step: Annotated[bool, typer.Option("--all", help="List the calls of every step.")] = False,
    chrome: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a trace for Perfetto or chrome://tracing.")
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with plots.")] = None,
    building: Building,
    tokenizer: Tokenizer = None,
    json: Json = False,
) -> None:
    """Run a prompt and print every op call, and time by op with bytes, flops and the fraction of the device's roof."""
    from json import dumps

    from bestiary.core.checkpoint.transaction import check_file, new_file
    from bestiary.core.cli.answer import open_llm
    from bestiary.core.cli.report import progress
    from bestiary.core.cli.session import session_of
    from bestiary.core.errors import UsageError
    from bestiary.core.observe.chrome import chrome_trace
    from bestiary.core.observe.record import check_undivided, record
    from bestiary.core.observe.report import report
    from bestiary.core.observe.text import listed_steps
    from bestiary.core.opening import check_built
    from bestiary.core.prepare import prepare
    from bestiary.core.progress import step
    from bestiary.core.reports.page import plotly

    session = session_of(ctx)
    if prompt is not None and prompt_tokens is not None:
        raise UsageError("E-CLI-PROMPT", "--prompt-tokens", "stands for a prompt, and one is given")
    for target in filter(None, (chrome, html)):
        check_file(target)
    if html is not None:
        plotly()
    with progress(silent=json) as steps:
        engine = prepare(
            model,
            host=session.host,
            options=building.options(),
            needs_tokenizer=prompt is not None and tokenizer is None,
            progress=steps,
        )
        check_built(engine, building.said())
        check_undivided(engine)
        with open_llm(engine, session, steps, tokenizer=tokenizer, prefix_caching=False, **building.at_load()) as llm:
            with step(steps, "record") as note:
                found = record(llm, _prompts(llm, prompt, prompt_tokens or _RANDOM, batch), max_tokens)
                note.text = f"{len(found.steps)} steps, {len(found.calls):,} calls"
            device = llm.engine.network.target.device
    listed = listed_steps(found, everything=every_step)
    title = f"bestiary trace {model}"
    if chrome is not None:
        new_file(chrome, dumps(chrome_trace(title, found), ensure_ascii=False).encode())
    if html is not None:
        _write_page(html, title, device.type, found, every_step)
    if json:
        print_json(report(model, str(device), found, listed).as_dict())
    else:
        _show(device.type, found, every_step)


def _prompts(llm: LLM, prompt: str | None, count: int, batch: int) -> list[object]:
    from bestiary.core.observe.record import random_prompt

    if prompt is not None:
        return [prompt] * batch
    return [random_prompt(count, llm.engine.vocab_size, seed) for seed in range(batch)]


def _write_page(target: Path, title: str, device: str, found: Recording, everything: bool) -> None:
    from bestiary.core.observe.page import page
    from bestiary.core.observe.text import listed_steps
    from bestiary.core.version import __version__

    answers = f"{len(found.outputs)} request{'s' * (len(found.outputs) > 1)}, {len(found.steps)} steps"
    about = f"{answers}, on {device} in {found.roofs.dtype}, bestiary {__version__}"
    page(title, about, device, found, listed_steps(found, everything=everything)).write(target)


def _show(device: str, found: Recording, everything: bool) -> None:
    from bestiary.core.cli.report import table, width
    from bestiary.core.observe import text
    from bestiary.core.observe.summary import by_kernel, by_op

    for step in text.listed_steps(found, everything=everything):
        print(text.step_title(step))
        table(text.CALL_HEADINGS, text.call_rows(step), total=max(width(), 140))
        print()
    for what, rows in (("op", by_op(found.calls, found.roofs)), ("op=kernel", by_kernel(found.calls, found.roofs))):
        table(text.sum_headings(what), text.sum_rows(rows))
        print()
    print(text.outside_text(found))
    print(text.roofs_text(found.roofs))
    for note in text.notes(device):
        print(note)
