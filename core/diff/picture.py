"""A comparison as a page: what is wrong on top, a map of the errors, how they grow, and every number."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bestiary.core.diff.compare import Row
from bestiary.core.diff.run import Result
from bestiary.core.diff.text import (
    BISECTION,
    HEADINGS,
    SPOILED,
    bisection,
    cells,
    first_place,
    heading,
    spoiled,
    verdict,
)
from bestiary.core.reports.page import Page
from bestiary.core.version import __version__

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

#: What stands for zero on the map of own errors, and for an infinite error.
_LEAST, _MOST = 1e-3, 6.0
_OUTSIDE = "model"


def page(result: Result) -> Page:
    """The page."""
    made = Page(f"bestiary diff: {result.ours}", f"against {result.against} · {result.device} · bestiary {__version__}")
    made.heading(verdict(result).capitalize())
    rows, first = result.comparison.rows, result.comparison.first
    if result.comparison.spoilers:
        made.heading("Inputs that calls changed")
        made.table(SPOILED, spoiled(result))
    if first is not None:
        made.heading(f"First out of tolerance: {first.name}")
        made.table(("", ""), list(first_place(result)))
        made.heading("One option changed at a time")
        found = bisection(result)
        gone = [number for number, outcome in enumerate(result.outcomes) if outcome.gone]
        made.table(BISECTION, found, marked=gone)
    made.heading("Errors by layer and place")
    made.figure(
        _map(rows, own=True),
        "Own error over what is allowed, as a power of ten: 0 is the tolerance. Each tensor was made of the reference's; "
        "a cross marks the first that is out of tolerance.",
    )
    made.figure(
        _map(rows, own=False), "Accumulated relative error, as a power of ten, of the tensors as the model makes them."
    )
    made.heading("Errors along the model")
    made.figure(_depth(rows), "Relative errors in the order of execution, and what is allowed of the own ones.")
    made.heading("All tensors")
    for line in heading(result)[2:]:
        made.text(line)
    marked = [number for number, row in enumerate(rows) if not row.excess <= 1]
    made.table(HEADINGS, [cells(row.name, row) for row in rows], marked=marked)
    return made


def _log(value: float, least: float) -> float:
    return math.log10(max(value, least)) if math.isfinite(value) else _MOST


def _map(rows: list[Row], *, own: bool) -> Figure:
    import plotly.graph_objects as go

    layers = sorted({row.layer for row in rows if row.layer is not None})
    lines = [*map(str, layers), _OUTSIDE] if any(row.layer is None for row in rows) else [*map(str, layers)]
    places = list(dict.fromkeys(row.place for row in rows))
    values: list[list[float | None]] = [[None] * len(places) for _ in lines]
    texts = [[""] * len(places) for _ in lines]
    least = _LEAST if own else 0.0
    for row in rows:
        line = lines.index(_OUTSIDE if row.layer is None else str(row.layer))
        column = places.index(row.place)
        value = row.excess if own else row.accumulated.accumulated.relative
        values[line][column] = _log(value, least) if own or value else None
        texts[line][column] = f"{row.name}: {value:.3g}"
    scale = (
        {"colorscale": [[0, "#f3f6fa"], [0.5, "#9db8d9"], [0.501, "#f2a488"], [1, "#8c1d18"]], "zmin": -3, "zmax": 3}
        if own
        else {"colorscale": [[0, "#f3f6fa"], [1, "#1d3f72"]]}
    )
    title = "own error / allowed, log10" if own else "accumulated relative error, log10"
    drawn = go.Figure(
        go.Heatmap(
            z=values, x=places, y=lines, text=texts, hovertemplate="%{text}<extra></extra>", xgap=1, ygap=1,
            colorbar={"title": {"text": title, "side": "right"}}, **scale,
        )
    )  # fmt: skip
    first = next((row for row in rows if not row.excess <= 1), None)
    if own and first is not None:
        at = _OUTSIDE if first.layer is None else str(first.layer)
        mark = {"symbol": "x", "size": 13, "color": "#000"}
        drawn.add_trace(go.Scatter(x=[first.place], y=[at], mode="markers", marker=mark, hoverinfo="skip"))
    drawn.update_layout(
        height=180 + 24 * len(lines), margin={"l": 60, "r": 20, "t": 20, "b": 130}, showlegend=False,
        plot_bgcolor="#fff",
        xaxis={"title": "place", "tickangle": -45}, yaxis={"title": "layer", "type": "category", "autorange": "reversed"},
    )  # fmt: skip
    return drawn


def _depth(rows: list[Row]) -> Figure:
    import plotly.graph_objects as go

    drawn = go.Figure()
    names = [row.name for row in rows]
    places = list(range(len(rows)))
    lines = (
        ("accumulated", [row.accumulated.accumulated.relative for row in rows], {"color": "#1d3f72"}),
        ("own", [row.reading.own.relative for row in rows], {"color": "#d1703c"}),
        ("allowed of the own", [row.reading.allowed.relative for row in rows], {"color": "#9aa0a6", "dash": "dot"}),
    )
    for label, values, style in lines:
        mode = "markers" if label == "own" else "lines"
        shown = [value if value and math.isfinite(value) else None for value in values]  # zero has no logarithm
        drawn.add_trace(
            go.Scatter(
                x=places,
                y=shown,
                text=names,
                name=label,
                line=style,
                mode=mode,
                marker={"size": 4},
                hovertemplate="%{text}: %{y:.3g}<extra></extra>",
            )
        )
    first = next((number for number, row in enumerate(rows) if not row.excess <= 1), None)
    if first is not None:
        drawn.add_vline(x=first, line={"color": "#8c1d18"}, annotation_text=names[first])
    starts = {row.layer: number for number, row in reversed(list(enumerate(rows))) if row.layer is not None}
    drawn.update_layout(
        height=420, margin={"l": 60, "r": 20, "t": 30, "b": 50}, legend={"orientation": "h", "y": 1.12},
        xaxis={
            "title": "layer", "tickvals": list(starts.values())[::-1], "ticktext": [str(one) for one in starts][::-1],
        },
        yaxis={"title": "relative error", "type": "log", "exponentformat": "power", "dtick": 1},
    )  # fmt: skip
    return drawn
