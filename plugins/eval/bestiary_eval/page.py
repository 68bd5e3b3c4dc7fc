"""Scores as a page: points with intervals, the paired differences, the items that flipped."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from bestiary.tools import Page

from .report import EvalReport, TaskScore
from .show import FLIPS, cut, differences, flips, metric, scores

_MODEL, _OTHER = "#1f5fa8", "#d9822b"


def page(report: EvalReport) -> Page:
    """The page of a report."""
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    asked = "conversations" if report.chat_template else "plain prompts"
    about = f"{time.strftime('%Y-%m-%d %H:%M')}, {asked}, up to {report.max_seq_len} tokens; {versions}"
    title = f"eval: {report.model}" + (f" against {report.against}" if report.against else "")
    made = Page(title, about)
    made.heading("Scores")
    if lost := cut(report):
        made.text(f"Beware: {lost}.")
    drawn = [one for one in report.scores if one.interval == "wilson"]
    if drawn:
        made.figure(_points(report, drawn), "Share of items answered right, with Wilson's 95 % interval.")
    made.table(*scores(report))
    if report.against is not None:
        _compare(made, report, drawn)
    return made


def _compare(made: Page, report: EvalReport, drawn: Sequence[TaskScore]) -> None:
    made.heading("Paired differences")
    made.text(
        f"{report.model} minus {report.against}, over the same items. Gained: right for {report.model} only; lost: right for "
        f"{report.against} only. McNemar's exact p says how often a fair coin would split the flipped items at least as unevenly."
    )
    if drawn:
        made.figure(_differences(report, drawn), "Difference with its 95 % interval over paired items.")
    made.table(*differences(report))
    made.heading("Flipped items")
    rows = flips(report)
    if not rows:
        made.text("None: every item is right for both, or wrong for both.")
        return
    marked = [number for number, flip in enumerate(_all_flips(report)) if not flip]
    made.text(f"Answers of {report.model} (model) and {report.against} (against). Marked: lost by {report.model}.")
    made.table(FLIPS, rows, marked=marked)


def _all_flips(report: EvalReport) -> list[bool]:
    return [flip.gained for one in report.scores if one.against is not None for flip in one.against.flips]


def _points(report: EvalReport, drawn: Sequence[TaskScore]) -> Any:
    from plotly import graph_objects as go

    figure = go.Figure()
    sides = [(report.model, _MODEL, [(one.value, one.low, one.high) for one in drawn])]
    if report.against is not None:
        pairs = [one.against for one in drawn if one.against is not None]
        sides.append((report.against, _OTHER, [(one.value, one.low, one.high) for one in pairs]))
    for number, (name, colour, found) in enumerate(sides):
        shift = (number - (len(sides) - 1) / 2) * 0.3
        figure.add_trace(_dots(found, [index + shift for index in range(len(found))], name, colour))
    return _laid_out(figure, drawn, "score (share of items)", [0, 1])


def _differences(report: EvalReport, drawn: Sequence[TaskScore]) -> Any:
    from plotly import graph_objects as go

    pairs = [one.against for one in drawn if one.against is not None]
    found = [(one.difference, one.difference_low, one.difference_high) for one in pairs]
    figure = go.Figure(_dots(found, list(range(len(found))), "difference", _MODEL))
    figure.add_vline(x=0, line={"color": "#60656c", "width": 1, "dash": "dot"})
    return _laid_out(figure, drawn, "difference of scores", None)


def _dots(
    found: Sequence[tuple[float, float | None, float | None]], places: Sequence[float], name: str, colour: str
) -> Any:
    from plotly import graph_objects as go

    above = [(high if high is not None else value) - value for value, _, high in found]
    below = [value - (low if low is not None else value) for value, low, _ in found]
    return go.Scatter(
        x=[value for value, _, _ in found],
        y=list(places),
        name=name,
        mode="markers",
        marker={"color": colour, "size": 9},
        error_x={"type": "data", "symmetric": False, "array": above, "arrayminus": below, "color": colour},
        hovertemplate="%{x:.4f}<extra>" + name.replace("<", "&lt;") + "</extra>",
    )


def _laid_out(figure: Any, drawn: Sequence[TaskScore], title: str, span: list[float] | None) -> Any:
    labels = [f"{one.task}, {metric(one)}" for one in drawn]
    figure.update_layout(
        template="plotly_white",
        height=150 + 44 * len(drawn),
        margin={"l": 10, "r": 20, "t": 40, "b": 50},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        xaxis={"title": title, "range": span},
        yaxis={
            "tickvals": list(range(len(labels))),
            "ticktext": [label.replace("<", "&lt;") for label in labels],
            "range": [len(labels) - 0.4, -0.6],
            "automargin": True,
        },
    )
    return figure
