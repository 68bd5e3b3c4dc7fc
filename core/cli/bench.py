"""``bestiary bench``: latency, throughput, and behaviour under load."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bestiary.core.cli.bench_options import (
    DataOptions,
    IgnoreEos,
    Rates,
    Repeating,
    Requests,
    Target,
    TargetOptions,
    Users,
    Warmup,
    at_least,
)
from bestiary.core.cli.options import spread

if TYPE_CHECKING:
    from bestiary import LLM
    from bestiary.core.bench.job import Job
    from bestiary.core.bench.measure import Point, Run
    from bestiary.core.bench.reports import BenchReport
    from bestiary.core.bench.target import Target as Opened
    from bestiary.core.cli.session import Session
    from bestiary.core.progress import Progress

app = typer.Typer(help="Measure engines, and servers that speak OpenAI's API.", no_args_is_help=True)


@app.command("latency")
@spread
def latency(
    ctx: typer.Context,
    target: Target,
    *,
    input: Annotated[
        list[str] | None, typer.Option(metavar="TOKENS", help="Of prompts; repeatable, each with an --output.")
    ] = None,
    output: Annotated[list[str] | None, typer.Option(metavar="TOKENS", help="Of answers; repeatable.")] = None,
    ignore_eos: IgnoreEos = None,
    requests: Requests = 3,
    warmup: Warmup = 1,
    repeating: Repeating,
    options: TargetOptions,
) -> None:
    """One request at a time: time to first token, time between tokens, tokens a second."""
    from bestiary.core.bench import points
    from bestiary.core.bench.reports import LatencyReport
    from bestiary.core.bench.workloads import Data, workload

    lengths = points.pairs(input or ["128"], output or ["128"])

    def loads(opened: Sequence[Opened]) -> list[Point]:
        made = [
            workload(
                Data(input=one, output=other, ignore_eos=ignore_eos, prompt_ids=options.prompt_ids),
                opened,
                repeating.seed,
            )
            for one, other in lengths
        ]
        return points.latency(lengths, made, requests)

    _measure(ctx, LatencyReport, _job(target, options, repeating, requests, warmup), repeating, loads)


@app.command("throughput")
@spread
def throughput(
    ctx: typer.Context,
    target: Target,
    *,
    requests: Requests = 32,
    warmup: Warmup = 8,
    data: DataOptions,
    repeating: Repeating,
    options: TargetOptions,
) -> None:
    """Many requests at once, offline: tokens a second in, out, in all, and for each user."""
    from bestiary.core.bench import points
    from bestiary.core.bench.reports import ThroughputReport
    from bestiary.core.bench.workloads import workload

    said = data.data(prompt_ids=options.prompt_ids)
    job = _job(target, options, repeating, requests, warmup, batch=True)
    _measure(
        ctx,
        ThroughputReport,
        job,
        repeating,
        lambda opened: points.throughput(workload(said, opened, repeating.seed), requests),
    )


@app.command("serve")
@spread
def serve(
    ctx: typer.Context,
    target: Target,
    *,
    rate: Rates = None,
    concurrency: Users = None,
    requests: Requests = 64,
    warmup: Warmup = 8,
    data: DataOptions,
    repeating: Repeating,
    options: TargetOptions,
) -> None:
    """Requests that arrive at a rate, or of so many users: latencies, throughput and goodput under load."""
    from bestiary.core.bench import points
    from bestiary.core.bench.reports import ServeReport
    from bestiary.core.bench.workloads import workload

    said = data.data(prompt_ids=options.prompt_ids)
    loads = points.loads(rate or [], concurrency or [], repeating.seed)
    job = _job(target, options, repeating, requests, warmup)
    _measure(
        ctx,
        ServeReport,
        job,
        repeating,
        lambda opened: points.serve(workload(said, opened, repeating.seed), requests, loads),
    )


def _job(
    target: str, options: TargetOptions, repeating: Repeating, requests: int, warmup: int, *, batch: bool = False
) -> Job:
    """What is to be measured; what is wrong with the options is said here, before anything is loaded."""
    from bestiary.core.bench.job import Job, Named, command_line
    from bestiary.core.bench.url_target import httpx_or_refuse, is_url, refuse_bare

    for name, value, least in (
        ("--requests", requests, 1),
        ("--warmup", warmup, 0),
        ("--repeats", repeating.repeats, 1),
    ):
        at_least(name, value, least)
    for one in (target, options.compare):
        if one is not None:
            refuse_bare(one)
    options.check(target, batch=batch)
    repeating.check_outputs()
    first, other = options.options()
    named = [Named(target, first), *([] if options.compare is None else [Named(options.compare, other)])]
    if any(is_url(one.target) for one in named):
        httpx_or_refuse()
    return Job(
        named=named,
        server=options.server(),
        tokenizer=options.tokenizer,
        repeats=repeating.repeats,
        warmup=warmup,
        seed=repeating.seed,
        timeout=options.limit,
        slo=repeating.objective(),
        command=command_line(),
    )


def _measure(
    ctx: typer.Context,
    kind: type[BenchReport],
    job: Job,
    repeating: Repeating,
    loads: Callable[[Sequence[Opened]], list[Point]],
) -> None:
    """Run the job, show what came of it; exits with 70 if a run had no answer at all."""
    from bestiary.core.bench.job import failed
    from bestiary.core.cli.report import progress
    from bestiary.core.cli.session import session_of
    from bestiary.core.errors import INTERNAL

    session = session_of(ctx)
    with progress(silent=repeating.json == "-") as steps:
        report, runs = job.run(
            kind,
            loads,
            open_llm=lambda model, given: _open(session, steps, model, given),
            host=lambda: session.host,
            progress=steps,
        )
    _hand_out(report, runs, repeating)
    if failed(runs):
        print("a run has no answer: every request failed", file=sys.stderr)
        raise typer.Exit(INTERNAL)


def _hand_out(report: BenchReport, runs: Sequence[Run], repeating: Repeating) -> None:
    from bestiary.core.cli.options import print_json

    if repeating.html is not None:
        from bestiary.core.bench.page import page

        page(report, runs).write(repeating.html)
    if repeating.json == "-":
        print_json(report.as_dict())
        return
    if repeating.json is not None:
        from bestiary.core.checkpoint.files import json_bytes
        from bestiary.core.checkpoint.transaction import new_file

        new_file(Path(repeating.json), json_bytes(report.as_dict()))
    _show(report)


def _show(report: BenchReport) -> None:
    from bestiary.core.bench.columns import comparison_table, remarks, tables
    from bestiary.core.cli.report import table

    for number, (headings, rows) in enumerate(tables(report)):
        if number:
            print()
        table(headings, rows)
    if report.comparisons:
        one = report.comparisons[0]
        print(f"\n{one.target} against {one.against}:")
        table(*comparison_table(report.comparisons))
    for line in remarks(report):
        print(line)


@contextmanager
def _open(session: Session, steps: Progress, model: str, options: dict[str, Any]) -> Iterator[LLM]:
    """Any model. Engines and models of random weights may come without a tokenizer."""
    from bestiary.core.cli.answer import open_llm
    from bestiary.core.engine.engine import is_engine

    bare = is_engine(Path(model)) or options.get("weights") == "random"
    with open_llm(model, session, steps, **{"tokenizer": None if bare else "auto", **options}) as llm:
        yield llm
