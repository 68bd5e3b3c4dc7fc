"""The reports of ``bestiary bench`` as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from bestiary.core.bench.compare import Comparison, comparisons
from bestiary.core.bench.environment import Environment
from bestiary.core.bench.figures import RunFigures, Summary, errors, summary
from bestiary.core.bench.measure import Run
from bestiary.core.bench.records import Record
from bestiary.core.bench.slo import Slo
from bestiary.core.bench.target import EngineSide, Target
from bestiary.core.reports.schema import JsonReport, ReportPart


class TargetReport(ReportPart):
    """What was measured."""

    name: str = Field(description="by which the rest of the report names it")
    kind: str = Field(description="engine, or url")
    model: str = Field(description="the model it runs, as it says itself")
    device: str | None = Field(description="where it runs; null: not known")
    facts: Mapping[str, str | int | float | bool | None] = Field(
        description="sizes (tokens, requests, blocks) and the options it was opened with"
    )


class Objective(ReportPart):
    """Limits of the goodput."""

    ttft_s: float | None = Field(description="most seconds to the first token; null: no limit")
    itl_s: float | None = Field(description="most seconds between tokens, the mean of an answer; null: no limit")
    total_s: float | None = Field(description="most seconds to the end of the answer; null: no limit")


class RequestRow(ReportPart):
    """One request. Times are seconds from the moment when the run's first request was due."""

    number: int = Field(description="its place in the workload, from 0")
    due_s: float = Field(description="when it was to be sent")
    sent_s: float = Field(description="when it was sent")
    first_s: float | None = Field(description="from sent to the first token; null: none came")
    total_s: float = Field(description="from sent to the end or the failure")
    itl_mean_s: float | None = Field(description="mean time between its tokens; null: fewer than two")
    gap_s: float | None = Field(description="its longest silence after the first token; null: fewer than two pieces")
    prompt_tokens: int | None = Field(description="tokens of the prompt; null: not known")
    output_tokens: int = Field(description="tokens that came")
    asked_tokens: int = Field(description="tokens that were asked for, at most")
    cached_tokens: int | None = Field(description="prompt tokens that were reused; null: not known")
    preemptions: int | None = Field(description="how often it was computed anew; null: not known")
    finish_reason: str | None = Field(description="the target's word for why it ended; null: it failed")
    error: str | None = Field(
        description="http STATUS, cut, malformed, connection, timeout, server, refused or engine; null: none"
    )
    message: str | None = Field(description="more about the error; null: none")


class Steps(ReportPart):
    """The engine's steps, a column each; seconds count as those of the requests do."""

    at_s: list[float] = Field(description="when the results of each step were read, seconds")
    seconds: list[float | None] = Field(description="since the results of the step before; null: none was under way")
    decodes: list[int] = Field(description="tokens of requests that decode")
    prompt_tokens: list[int] = Field(description="tokens of prompts")
    running: list[int] = Field(description="requests that ran")
    waiting: list[int] = Field(description="requests that waited")
    blocks_used: list[int] = Field(description="KV blocks that requests held")
    blocks: int = Field(description="KV blocks in all")
    dropped: int = Field(description="earlier steps that are not listed")


class RunReport(ReportPart):
    """One repeat."""

    repeat: int = Field(description="from 0")
    figures: RunFigures = Field(description="figures of this run")
    errors: dict[str, int] = Field(description="requests that failed, by the kind of failure")
    requests: list[RequestRow] = Field(description="every request, in the order they were sent")
    steps: Steps | None = Field(description="the engine's steps; null: a server does not tell")


class PointReport(ReportPart):
    """One load on one target."""

    label: str = Field(description="the load, for people")
    target: str = Field(description="name of the target")
    input: str = Field(description="what was asked for, for people")
    left_out: int = Field(description="conversations of the data set that could not be used; 0 without a data set")
    load: str = Field(description="closed, open or batch")
    x: float | None = Field(description="closed: users at a time; open: requests a second; null: no sweep")
    summary: Summary = Field(description="median and ends over the repeats")
    runs: list[RunReport] = Field(description="the repeats")


class BenchReport(JsonReport):
    """What the three reports share."""

    command: list[str] = Field(description="the arguments after bestiary")
    began: str = Field(description="date and time in UTC, ISO 8601")
    seed: int = Field(description="of lengths, prompts and arrivals")
    repeats: int = Field(description="runs of each load on each target")
    warmup: int = Field(description="requests before them that are not counted")
    objective: Objective | None = Field(description="of the goodput; null: none was given")
    environment: Environment = Field(description="versions and machine")
    targets: list[TargetReport] = Field(description="one, or the two that are compared")
    points: list[PointReport] = Field(description="each load on each target")
    comparisons: list[Comparison] = Field(description="of two targets, figure by figure; empty for one")


class LatencyReport(BenchReport):
    """``bestiary bench latency``: one request at a time."""

    schema_name = "bench.latency"


class ThroughputReport(BenchReport):
    """``bestiary bench throughput``: many requests at once."""

    schema_name = "bench.throughput"


class ServeReport(BenchReport):
    """``bestiary bench serve``: requests that arrive."""

    schema_name = "bench.serve"


def report(
    kind: type[BenchReport],
    runs: Sequence[Run],
    targets: Sequence[Target],
    slo: Slo | None,
    **about: Any,
) -> BenchReport:
    """The report of all runs.

    Args:
        about: the fields that runs don't know.
    """
    objective = None if slo is None else Objective(ttft_s=slo.ttft, itl_s=slo.itl, total_s=slo.total)
    return kind(
        objective=objective,
        targets=[
            TargetReport(
                name=t.about.name, kind=t.about.kind, model=t.about.model, device=t.about.device, facts=t.about.facts
            )
            for t in targets
        ],
        points=[_point(group) for group in by_point(runs)],
        comparisons=comparisons(runs, [target.about.name for target in targets]),
        **about,
    )


def by_point(runs: Sequence[Run]) -> list[list[Run]]:
    """The repeats of each load on each target."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.point.label, run.target.about.name), []).append(run)
    return [sorted(group, key=lambda run: run.repeat) for group in groups.values()]


def _point(runs: Sequence[Run]) -> PointReport:
    point, target = runs[0].point, runs[0].target
    return PointReport(
        label=point.label,
        target=target.about.name,
        input=point.workload.describe(),
        left_out=point.workload.left_out,
        load=point.load.kind,
        x=point.x,
        summary=summary([run.figures for run in runs]),
        runs=[_run(run) for run in runs],
    )


def _run(run: Run) -> RunReport:
    zero = min(record.due for record in run.records)
    return RunReport(
        repeat=run.repeat,
        figures=run.figures,
        errors=errors(run.records),
        requests=[_row(record, zero) for record in run.records],
        steps=None if run.side is None else _steps(run.side, zero),
    )


def _row(record: Record, zero: float) -> RequestRow:
    ending = record.ending
    return RequestRow(
        number=record.ask.number,
        due_s=_micro(record.due - zero),
        sent_s=_micro(record.sent - zero),
        first_s=None if record.first is None else _micro(record.first),
        total_s=_micro(record.total),
        itl_mean_s=None if record.mean_interval is None else _micro(record.mean_interval),
        gap_s=None if record.longest_gap is None else _micro(record.longest_gap),
        prompt_tokens=record.prompt_tokens,
        output_tokens=record.output_tokens,
        asked_tokens=record.ask.output_tokens,
        cached_tokens=ending.cached_tokens,
        preemptions=ending.preemptions,
        finish_reason=ending.finish_reason,
        error=ending.error,
        message=ending.message,
    )


def _steps(side: EngineSide, zero: float) -> Steps:
    steps = side.steps
    return Steps(
        at_s=[_micro(one.at - zero) for one in steps],
        seconds=[None if one.seconds is None else _micro(one.seconds) for one in steps],
        decodes=[one.decodes for one in steps],
        prompt_tokens=[one.prompt_tokens for one in steps],
        running=[one.running for one in steps],
        waiting=[one.waiting for one in steps],
        blocks_used=[one.blocks_used for one in steps],
        blocks=side.blocks,
        dropped=side.dropped,
    )


def _micro(seconds: float) -> float:
    return round(seconds, 6)
