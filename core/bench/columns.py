"""The tables of the three measurements, for terminals and pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from bestiary.core.bench.compare import COMPARED, Comparison
from bestiary.core.bench.figures import Spread
from bestiary.core.bench.reports import BenchReport, PointReport


class Column(NamedTuple):
    """A figure under a heading."""

    heading: str
    figure: str
    show: Callable[[float], str]


def _rate(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _ms(seconds: float) -> str:
    return _rate(seconds * 1000)


def _percent(part: float) -> str:
    return f"{part * 100:.0f} %"


def _whole(value: float) -> str:
    return f"{value:.0f}"


_TTFT = (Column("TTFT p50, ms", "ttft_p50_s", _ms), Column("p99", "ttft_p99_s", _ms))
_ITL = (
    Column("ITL p50, ms", "itl_p50_s", _ms),
    Column("p90", "itl_p90_s", _ms),
    Column("p99", "itl_p99_s", _ms),
)
# Of all repeats together: a median would hide them.
_COUNTED = (
    Column("errors", "errors", _whole),
    Column("short", "short", _whole),
    Column("repeated", "repeated_prompts", _whole),
)
_RATES = (
    Column("in tok/s", "input_tokens_per_s", _rate),
    Column("out tok/s", "output_tokens_per_s", _rate),
    Column("total tok/s", "total_tokens_per_s", _rate),
    Column("user tok/s", "user_tokens_per_s", _rate),
)
_CACHE = (
    Column("KV peak", "kv_use_peak", _percent),
    Column("KV mean", "kv_use_mean", _percent),
    Column("preempted", "preemptions", _whole),
    Column("reused", "reused_share", _percent),
)
_LATE = Column("sent late p99", "late_p99_s", _ms)
_TOTAL = Column("total p50, ms", "total_p50_s", _ms)
_GOOD = (Column("good req/s", "goodput_per_s", _rate), Column("good", "goodput_share", _percent))

_AGAIN = ("repeated_prompts", "requests")

# Columns that only show where they are not 0.
_SELDOM = (*(column.figure for column in _COUNTED), "late_p99_s")

#: The tables of each measurement, by its schema's name.
TABLES: dict[str, tuple[tuple[Column, ...], ...]] = {
    "bench.latency": (
        (*_TTFT, *_ITL, Column("out tok/s", "output_tokens_per_s", _rate), _TOTAL, *_COUNTED),
        _GOOD,
    ),
    "bench.throughput": (
        _RATES,
        (*_TTFT, Column("ITL mean, ms", "itl_mean_s", _ms), _TOTAL, *_GOOD, *_COUNTED),
        _CACHE,
    ),
    "bench.serve": (
        (
            Column("arrivals/s", "arrivals_per_s", _rate),
            _LATE,
            Column("req/s", "requests_per_s", _rate),
            *_TTFT,
            *_COUNTED,
        ),
        (*_ITL, Column("gap p99", "gap_p99_s", _ms)),
        (*_RATES, *_GOOD),
        _CACHE,
    ),
}


def tables(report: BenchReport) -> list[tuple[list[str], list[list[str]]]]:
    """Headings and rows. A figure that no load has makes no column, and nor do errors, short answers and lateness of none."""
    found = []
    several = len(report.targets) > 1
    for columns in TABLES[report.schema_name]:
        had = [column for column in columns if _worth(column, report.points)]
        if not had:
            continue
        headings = ["load", *(["target"] if several else []), *(column.heading for column in had)]
        rows = [
            [point.label, *([point.target] if several else []), *(_cell(column, point) for column in had)]
            for point in report.points
        ]
        found.append((headings, rows))
    return found


def remarks(report: BenchReport) -> list[str]:
    """What to know of the tables: what of a data set was asked, failures of each kind and repeated prompts of each load, ratios
    that could not be made."""
    asked = dict.fromkeys(f"asked: {point.input}" for point in report.points if point.left_out)
    return [*asked, *_failures(report), *_repeated(report), *_left_out(report.comparisons)]


def _failures(report: BenchReport) -> list[str]:
    found = []
    for point in report.points:
        rows = [row for run in point.runs for row in run.requests if row.error is not None]
        for error in dict.fromkeys(row.error for row in rows):
            same = [row for row in rows if row.error == error]
            said = next((f": {row.message}" for row in same if row.message), "")
            total = sum(len(run.requests) for run in point.runs)
            found.append(f"{point.label}, {point.target}: {len(same)} of {total} requests failed, {error}{said}")
    return found


def _repeated(report: BenchReport) -> list[str]:
    found = []
    for point in report.points:
        again, total = (sum(int(getattr(run.figures, name) or 0) for run in point.runs) for name in _AGAIN)
        if again:
            found.append(
                f"{point.label}, {point.target}: {again} of {total} requests sent a prompt that was sent before, and what was "
                "reused of it makes them faster than new ones; a longer data set or fewer --requests has none of them"
            )
    return found


def _left_out(found: Sequence[Comparison]) -> list[str]:
    groups: dict[tuple[str, int], list[Comparison]] = {}
    for one in found:
        if one.left_out:
            groups.setdefault((one.label, one.left_out), []).append(one)
    return [
        f"{label}: no ratio of {', '.join(COMPARED[one.figure].title for one in group)} in {count} of {group[0].repeats} repeats, "
        f"in which {group[0].against} has 0, or one of the two has no such figure"
        for (label, count), group in groups.items()
    ]


def comparison_table(found: Sequence[Comparison]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of what is compared."""
    headings = ["load", "figure", "ratio", "low–high", "better"]
    return headings, [
        [
            one.label,
            COMPARED[one.figure].title,
            "-" if one.ratio is None else f"{one.ratio.median:.3f}",
            "-" if one.ratio is None else f"{one.ratio.low:.3f}–{one.ratio.high:.3f}",
            better(one),
        ]
        for one in found
    ]


def better(one: Comparison) -> str:
    """Which target the repeats speak for; a dash where they don't agree."""
    if not one.clear or one.ratio is None:
        return "-"
    return one.target if (one.ratio.median > 1) == one.more_is_better else one.against


def _worth(column: Column, points: Sequence[PointReport]) -> bool:
    spreads = [spread for point in points if (spread := _spread(column, point)) is not None]
    return bool(spreads) and (column.figure not in _SELDOM or any(spread.high for spread in spreads))


def _spread(column: Column, point: PointReport) -> Spread | None:
    found: Spread | None = getattr(point.summary, column.figure)
    return found


def _cell(column: Column, point: PointReport) -> str:
    spread = _spread(column, point)
    if spread is None:
        return "-"
    if column in _COUNTED:
        return f"{sum(getattr(run.figures, column.figure) for run in point.runs):.0f}"
    middle, low, high = (column.show(value) for value in (spread.median, spread.low, spread.high))
    return middle if low == high else f"{middle} ({low}–{high})"
