"""The page of a measurement: tables, then plots."""

from __future__ import annotations

from collections.abc import Sequence

from bestiary.core.bench import plots
from bestiary.core.bench.columns import comparison_table, remarks, tables
from bestiary.core.bench.measure import Run
from bestiary.core.bench.reports import BenchReport, by_point
from bestiary.core.home import gib
from bestiary.core.reports.page import Page

_TITLES = {"bench.latency": "Latency", "bench.throughput": "Throughput", "bench.serve": "Serving"}
_DISTRIBUTIONS = (
    ("first", "Time to first token", "time to first token"),
    ("intervals", "Time between tokens", "time between tokens"),
    ("total", "Time to the end of the answer", "time to the end"),
)


def page(report: BenchReport, runs: Sequence[Run]) -> Page:
    """What was measured, as a page."""
    names = " and ".join(target.name for target in report.targets)
    made = Page(f"{_TITLES[report.schema_name]} of {names}", _about(report))
    made.text(f"{report.points[0].input}; {report.warmup} requests of each load before, {report.repeats} repeats.")
    made.text("Cells are medians over the repeats, with the smallest and the largest in brackets.")
    for headings, rows in tables(report):
        made.table(headings, rows)
    for line in remarks(report):
        made.text(line)
    _compared(made, report)
    if len({point.x for point in report.points if point.x is not None}) > 1:
        made.heading("Against the load")
        title = "arrivals a second" if report.points[0].load == "open" else "users at a time"
        made.figure(plots.load_curves(report.points, title), "Bars reach from the smallest to the largest repeat.")
    for what, heading, title in _DISTRIBUTIONS:
        if plots.has(runs, what):
            made.heading(heading)
            note = "All repeats. The histogram leaves out what took longer than 99.5 % of all."
            made.figure(plots.distribution(runs, what, title), note)
    _timelines(made, runs)
    _environment(made, report)
    return made


def _about(report: BenchReport) -> str:
    versions = f"bestiary {report.environment.bestiary}, Python {report.environment.python}"
    packages = "".join(f", {name} {version}" for name, version in report.environment.packages.items())
    return f"{report.began}, {versions}{packages}; seed {report.seed}"


def _compared(made: Page, report: BenchReport) -> None:
    if not report.comparisons:
        return
    one = report.comparisons[0]
    made.heading(f"{one.target} against {one.against}")
    made.text(
        "Each repeat ran on both in turn, with the same requests, and gives a ratio. Grey: the repeats don't agree."
    )
    for label in dict.fromkeys(found.label for found in report.comparisons):
        found = [found for found in report.comparisons if found.label == label and found.ratio is not None]
        if found:
            made.figure(plots.compare_bars(found), label)
    made.table(*comparison_table(report.comparisons))


def _timelines(made: Page, runs: Sequence[Run]) -> None:
    made.heading("Over time")
    for repeats in by_point(runs):
        run = repeats[-1]
        caption = f"{run.point.label}, {run.target.about.name}, repeat {run.repeat + 1} of {len(repeats)}"
        if run.side is not None and run.side.steps:
            made.figure(plots.timeline(run), caption)
        else:
            made.figure(plots.in_flight(run), caption)


def _environment(made: Page, report: BenchReport) -> None:
    made.heading("Where")
    machine = report.environment
    rows = [("system", machine.system), ("processors", str(machine.processors))]
    rows += [("threads", str(machine.threads))] if machine.threads is not None else []
    for device in machine.devices:
        memory = "" if device.memory_bytes is None else f", {gib(device.memory_bytes)}"
        rows.append((device.name, f"{device.model}{memory}"))
    rows += [(f"plugin {name}", version) for name, version in machine.plugins.items()]
    for target in report.targets:
        facts = ", ".join(f"{name} {value}" for name, value in target.facts.items())
        where = "" if target.device is None else f" on {target.device}"
        rows.append((target.name, f"{target.model}{where}: {facts}"))
    made.table(("", ""), rows)
