"""What a run comes to, in numbers, and what several runs do."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from pydantic import Field

from bestiary.core.bench.records import Record
from bestiary.core.bench.slo import Slo
from bestiary.core.bench.target import EngineSide
from bestiary.core.reports.schema import ReportPart

T = TypeVar("T")


class Spread(ReportPart):
    """A figure over the repeats that have it."""

    median: float = Field(description="median of the repeats' values, in the figure's unit")
    low: float = Field(description="the smallest of them")
    high: float = Field(description="the largest of them")

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median=statistics.median(values), low=min(values), high=max(values))


def _seconds(what: str) -> Any:
    return Field(default=None, description=f"{what}, seconds; null: no answer has it")


def _rate(what: str) -> Any:
    return Field(default=None, description=f"{what}, a second; null: not known")


def _number(what: str) -> Any:
    return Field(default=None, description=f"{what}; null: not known")


class Figures(ReportPart, Generic[T]):
    """Figures of one run, or over several. Of what failed only ``requests``, ``errors``, ``repeated_prompts``, ``duration_s`` and
    ``goodput_share`` know."""

    duration_s: T | None = _seconds("from the first request to the end of the last answer")
    requests: T | None = _number("requests sent")
    errors: T | None = _number("requests that failed or whose answers were cut")
    short: T | None = _number("answers that ended before the length asked for, in spite of ignored end tokens")
    repeated_prompts: T | None = _number(
        "requests whose prompt the target had had before: in this run, or, of a server, in any run"
    )
    arrivals_per_s: T | None = Field(
        default=None,
        description="requests sent, a second, over the time from the first to the last and one mean gap more; null: they did not "
        "come at a rate, or at one moment",
    )
    requests_per_s: T | None = _rate("requests answered, over `duration_s`,")
    input_tokens_per_s: T | None = _rate("prompt tokens of answered requests")
    output_tokens_per_s: T | None = _rate("answer tokens")
    total_tokens_per_s: T | None = _rate("prompt and answer tokens")
    user_tokens_per_s: T | None = _rate(
        "answer tokens that one user gets from his request to its end, the median user's"
    )
    ttft_mean_s: T | None = _seconds("time to first token, mean")
    ttft_p50_s: T | None = _seconds("time to first token, median")
    ttft_p90_s: T | None = _seconds("time to first token, 90th percentile")
    ttft_p99_s: T | None = _seconds("time to first token, 99th percentile")
    itl_mean_s: T | None = _seconds("time between tokens after the first, mean")
    itl_p50_s: T | None = _seconds("time between tokens, median over all tokens")
    itl_p90_s: T | None = _seconds("time between tokens, 90th percentile over all tokens")
    itl_p99_s: T | None = _seconds("time between tokens, 99th percentile over all tokens")
    gap_p99_s: T | None = _seconds("longest silence within an answer, 99th percentile over answers")
    total_p50_s: T | None = _seconds("request to end of answer, median")
    total_p90_s: T | None = _seconds("request to end of answer, 90th percentile")
    total_p99_s: T | None = _seconds("request to end of answer, 99th percentile")
    goodput_per_s: T | None = _rate("answers that met the objective")
    goodput_share: T | None = _number("part of the requests whose answers met the objective, 0 to 1")
    late_p99_s: T | None = _seconds(
        "how late the load generator sent, 99th percentile; latencies count from when it did"
    )
    kv_use_peak: T | None = _number("largest part of the KV cache's blocks that requests held, 0 to 1")
    kv_use_mean: T | None = _number(
        "part of the KV cache's blocks that requests held, mean over the time of steps, 0 to 1"
    )
    preemptions: T | None = _number("times that a running request gave up its blocks")
    reused_tokens: T | None = _number("prompt tokens whose keys and values were reused")
    reused_share: T | None = _number("part of the prompt tokens that were reused, 0 to 1")
    step_p50_s: T | None = _seconds("a step of the engine, median")


#: Of a run, and over several.
RunFigures = Figures[float]
Summary = Figures[Spread]


def figures(
    records: Sequence[Record], side: EngineSide | None, slo: Slo | None, repeated: int = 0, *, arriving: bool = False
) -> RunFigures:
    """Figures of one run.

    Args:
        repeated: requests whose prompt the target had had before.
        arriving: they came at a rate, whether the earlier ones were answered or not.
    """
    whole = [record for record in records if not record.failed]
    duration = max(record.ended for record in records) - min(record.sent for record in records)
    return RunFigures(
        duration_s=duration,
        requests=len(records),
        arrivals_per_s=_arrivals(records) if arriving else None,
        errors=len(records) - len(whole),
        short=sum(record.short for record in whole),
        repeated_prompts=repeated,
        late_p99_s=percentile([record.sent - record.due for record in records], 99),
        **_rates(whole, duration),
        **_latencies(whole),
        **_goodput(records, duration, slo),
        **_reuse(whole),
        **_engine(side),
    )


def summary(runs: Sequence[RunFigures]) -> Summary:
    """Of each figure the median and the ends over the runs that have it."""
    return Summary(**{name: Spread.of(values) for name in RunFigures.model_fields if (values := _values(runs, name))})


def errors(records: Sequence[Record]) -> dict[str, int]:
    """How many requests failed, by the kind of failure."""
    return dict(Counter(record.ending.error for record in records if record.ending.error is not None))


def percentile(values: Sequence[float], percent: float) -> float | None:
    """With linear interpolation; None of nothing."""
    return float(np.percentile(values, percent)) if len(values) else None


def _values(runs: Sequence[RunFigures], name: str) -> list[float]:
    return [value for run in runs if (value := getattr(run, name)) is not None]


def _arrivals(records: Sequence[Record]) -> float | None:
    """n requests have n - 1 gaps, so that one mean gap more makes n of them."""
    sent = [record.sent for record in records]
    span = max(sent) - min(sent)
    return (len(sent) - 1) / span if span else None


def _rates(whole: Sequence[Record], duration: float) -> dict[str, float | None]:
    output = sum(record.output_tokens for record in whole)
    prompts = [record.prompt_tokens for record in whole]
    known = [tokens for tokens in prompts if tokens is not None]
    users = [record.output_tokens / record.total for record in whole if record.total > 0]
    input = sum(known) if len(known) == len(prompts) else None
    return {
        "requests_per_s": len(whole) / duration,
        "output_tokens_per_s": output / duration,
        "input_tokens_per_s": None if input is None else input / duration,
        "total_tokens_per_s": None if input is None else (input + output) / duration,
        "user_tokens_per_s": percentile(users, 50),
    }


def _latencies(whole: Sequence[Record]) -> dict[str, float | None]:
    first = [record.first for record in whole if record.first is not None]
    between = [seconds for record in whole for seconds in record.intervals]
    means = [seconds for record in whole if (seconds := record.mean_interval) is not None]
    gaps = [gap for record in whole if (gap := record.longest_gap) is not None]
    found = {
        "ttft_mean_s": statistics.fmean(first) if first else None,
        # Where nobody reads along, the answers' own means are all there is.
        "itl_mean_s": statistics.fmean(between or means) if between or means else None,
        "gap_p99_s": percentile(gaps, 99),
    }
    for name, values in (("ttft", first), ("itl", between), ("total", [record.total for record in whole])):
        found |= {f"{name}_p{percent}_s": percentile(values, percent) for percent in (50, 90, 99)}
    return found


def _goodput(records: Sequence[Record], duration: float, slo: Slo | None) -> dict[str, float | None]:
    if slo is None:
        return {}
    met = sum(slo.met(record) for record in records)
    return {"goodput_per_s": met / duration, "goodput_share": met / len(records)}


def _reuse(whole: Sequence[Record]) -> dict[str, float | None]:
    told = [(r.ending.cached_tokens, r.prompt_tokens) for r in whole if r.ending.cached_tokens is not None]
    reused, prompts = sum(cached or 0 for cached, _ in told), sum(tokens or 0 for _, tokens in told)
    return {"reused_tokens": reused, "reused_share": reused / prompts if prompts else None} if told else {}


def _engine(side: EngineSide | None) -> dict[str, float | None]:
    if side is None or not side.steps:
        return {}
    use = [step.blocks_used / max(1, side.blocks) for step in side.steps]
    timed = [(step.seconds, part) for step, part in zip(side.steps, use, strict=True) if step.seconds is not None]
    whole = sum(seconds for seconds, _ in timed)
    mean = sum(seconds * part for seconds, part in timed) / whole if whole else statistics.fmean(use)
    return {
        "kv_use_peak": max(use),
        "kv_use_mean": mean,
        "preemptions": side.preemptions,
        "step_p50_s": percentile([seconds for seconds, _ in timed], 50),
    }
