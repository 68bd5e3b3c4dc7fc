"""A comparison as a page: what is wrong on top, a map of the errors, how they grow, and every number."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from bestiary.core.diff.compare import Row
from bestiary.core.diff.quantization import Loss
from bestiary.core.diff.run import Result
from bestiary.core.diff.text import (
    BISECTION,
    HEADINGS,
    SPOILED,
    STRANGE,
    bisection,
    cells,
    failed_place,
    first_place,
    heading,
    judged,
    spoiled,
    strange,
    verdict,
    ways_past,
)
from bestiary.core.reports.page import Page
from bestiary.core.version import __version__

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

#: What stands for zero on the map of own errors.
_LEAST = 1e-3
_OUTSIDE = "model"
_INFINITE = "#4a0d67"
_BOTH = (True, False)


def page(result: Result) -> Page:
    """The page."""
    made = Page(f"bestiary diff: {result.ours}", f"against {result.against} · {result.device} · bestiary {__version__}")
    said = verdict(result)
    made.heading(said[0].upper() + said[1:])
    rows, first = result.comparison.rows, result.comparison.first
    for failure, distribution in zip(result.failures, result.failed_by, strict=True):
        made.heading(f"Raises on the way to {failure.place}")
        made.table(("", ""), list(failed_place(failure, distribution)))
        if failure.outcomes:
            made.heading("One option changed at a time, to get past it")
            ran = [number for number, outcome in enumerate(failure.outcomes) if outcome.excess is not None]
            made.table(BISECTION, ways_past(failure), marked=ran)
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
    if result.quantization is not None:
        _quantization(made, result, result.quantization)
    if rows:
        _errors(made, result)
    return made


def _errors(made: Page, result: Result) -> None:
    """Maps, the way along the model, and every number."""
    rows = result.comparison.rows
    made.heading("Errors by layer and place")
    infinite = (
        " ∞, violet: infinite, or not a number."
        if not all(math.isfinite(_error(row, own)) for row in rows for own in _BOTH)
        else ""
    )
    made.figure(
        _map(rows, own=True),
        "Own error over what is allowed, as a power of ten: 0 is the tolerance. Each tensor was made of the reference's; "
        f"a cross marks the first that is out of tolerance.{infinite}",
    )
    made.figure(
        _map(rows, own=False),
        f"Accumulated relative error, as a power of ten, of the tensors as the model makes them.{infinite}",
    )
    made.heading("Errors along the model")
    made.figure(
        _depth(rows), f"Relative errors in the order of execution, and what is allowed of the own ones.{infinite}"
    )
    made.heading("All tensors")
    for line in heading(result)[2:]:
        made.text(line)
    marked = [number for number, row in enumerate(rows) if not row.excess <= 1]
    made.table(HEADINGS, [cells(row.name, row) for row in rows], marked=marked)


def _quantization(made: Page, result: Result, loss: Loss) -> None:
    made.heading("What quantized weights cost")
    made.figure(
        _costs(loss),
        f"Error of the logits, where the weights of one part alone are quantized. With all it is {loss.error:.3g}, and {loss.allowed:.3g} "
        "is what the methods allow.",
    )
    if found := strange(result):
        made.heading("Weights that are not what their method makes")
        made.table(STRANGE, found)
    else:
        made.text(judged(result))


def _costs(loss: Loss) -> Figure:
    import plotly.graph_objects as go

    names, errors = [one.part for one in loss.costs], [one.error for one in loss.costs]
    bars = go.Bar(x=names, y=errors, marker={"color": "#1d3f72"}, hovertemplate="%{x}: %{y:.3g}<extra></extra>")
    drawn = go.Figure([bars])
    drawn.add_hline(
        y=loss.error, line={"color": "#d1703c"}, annotation_text="all quantized", annotation_position="top right"
    )
    drawn.update_layout(
        height=380, margin={"l": 70, "r": 40, "t": 40, "b": 110},
        xaxis={"title": "part that is quantized", "tickangle": -45, "type": "category"},
        yaxis={"title": "logits' error", "rangemode": "tozero"},
    )  # fmt: skip
    return drawn


def _error(row: Row, own: bool) -> float:
    """What the maps show of a tensor: the own error over what is allowed, or the accumulated relative error."""
    return row.excess if own else row.accumulated.accumulated.relative


def _map(rows: list[Row], *, own: bool) -> Figure:
    import plotly.graph_objects as go

    layers = sorted({row.layer for row in rows if row.layer is not None})
    lines = [*map(str, layers), *([_OUTSIDE] if any(row.layer is None for row in rows) else [])]
    places = list(dict.fromkeys(row.place for row in rows))
    finite, texts, infinite = _cells(rows, lines, places, own)
    title = "own error / allowed, log10" if own else "accumulated relative error, log10"
    drawn = go.Figure(
        [
            go.Heatmap(z=finite, text=texts, **_style(places, lines), **_scale(finite, title, own)),
            go.Heatmap(
                z=[[None if cell is None else 1 for cell in line] for line in infinite],
                text=[["∞" if cell else "" for cell in line] for line in infinite],
                customdata=[[cell or "" for cell in line] for line in infinite],
                texttemplate="%{text}",
                textfont={"color": "#fff", "size": 14},
                colorscale=[[0, _INFINITE], [1, _INFINITE]],
                showscale=False,
                **{**_style(places, lines), "hovertemplate": "%{customdata}<extra></extra>"},
            ),
        ]
    )
    first = _first(rows)
    if own and first is not None:
        row = rows[first]
        at = _OUTSIDE if row.layer is None else str(row.layer)
        mark = {"symbol": "x", "size": 12, "color": "#fff", "line": {"color": "#000", "width": 1.5}}
        drawn.add_trace(go.Scatter(x=[row.place], y=[at], mode="markers", marker=mark, hoverinfo="skip"))
    drawn.update_layout(
        height=260 + 24 * len(lines), margin={"l": 60, "r": 20, "t": 90, "b": 130}, showlegend=False, plot_bgcolor="#fff",
        xaxis={"title": {"text": "place", "standoff": 4}, "tickangle": -45, "categoryarray": places},
        yaxis={"title": "layer", "type": "category", "categoryarray": lines[::-1]},
    )  # fmt: skip
    return drawn


def _cells(
    rows: list[Row], lines: list[str], places: list[str], own: bool
) -> tuple[list[list[float | None]], list[list[str]], list[list[str | None]]]:
    """By line and place: powers of ten of the finite errors, the texts of these, and the texts of the infinite ones."""
    finite: list[list[float | None]] = [[None] * len(places) for _ in lines]
    infinite: list[list[str | None]] = [[None] * len(places) for _ in lines]
    texts = [[""] * len(places) for _ in lines]
    for row in rows:
        line, column = lines.index(_OUTSIDE if row.layer is None else str(row.layer)), places.index(row.place)
        value = _error(row, own)
        text = f"{row.name}: {value:.3g}"
        if not math.isfinite(value):
            infinite[line][column] = text
        elif own or value:
            finite[line][column], texts[line][column] = math.log10(max(value, _LEAST) if own else value), text
    return finite, texts, infinite


def _style(places: list[str], lines: list[str]) -> dict[str, Any]:
    return {"x": places, "y": lines, "hovertemplate": "%{text}<extra></extra>", "xgap": 1, "ygap": 1}


def _scale(finite: list[list[float | None]], title: str, own: bool) -> dict[str, Any]:
    """Colours, and their bar above the map on the left, where the plot's buttons are not."""
    bar = {
        "title": {"text": title, "side": "top"}, "orientation": "h", "thickness": 12, "len": 0.45, "x": 0, "xanchor": "left",
        "y": 1, "ypad": 8, "yanchor": "bottom", "nticks": 7,
    }  # fmt: skip
    if own:
        colours = [[0, "#f3f6fa"], [0.5, "#9db8d9"], [0.501, "#f2a488"], [1, "#8c1d18"]]
        return {"colorscale": colours, "zmin": -3, "zmax": 3, "colorbar": bar}
    known = [value for line in finite for value in line if value is not None]
    if not known:
        return {"showscale": False}
    ends = (min(known), max(max(known), min(known) + 1))
    return {"colorscale": [[0, "#dfe7f2"], [1, "#1d3f72"]], "zmin": ends[0], "zmax": ends[1], "colorbar": bar}


def _first(rows: list[Row]) -> int | None:
    return next((number for number, row in enumerate(rows) if not row.excess <= 1), None)


def _depth(rows: list[Row]) -> Figure:
    import plotly.graph_objects as go

    names = [row.name for row in rows]
    lines = (
        ("accumulated", [row.accumulated.accumulated.relative for row in rows], "#1d3f72", "lines"),
        ("own", [row.reading.own.relative for row in rows], "#d1703c", "markers"),
        ("allowed of the own", [row.reading.allowed.relative for row in rows], "#9aa0a6", "lines"),
    )
    known = [value for _, values, *_ in lines for value in values if value and math.isfinite(value)]
    top = 10 ** (math.ceil(math.log10(max(known, default=1.0))) + 1)  # where infinite ones are drawn
    drawn = go.Figure()
    for label, values, colour, mode in lines:
        # Zero has no logarithm.
        shown = [value if value and math.isfinite(value) else None for value in values]
        style = {"color": colour, "dash": "dot" if label.startswith("allowed") else "solid"}
        drawn.add_trace(
            go.Scatter(
                x=list(range(len(rows))), y=shown, text=names, name=label, line=style, mode=mode,
                marker={"size": 5, "color": colour}, hovertemplate="%{text}: %{y:.3g}<extra></extra>",
            )
        )  # fmt: skip
        beyond = [number for number, value in enumerate(values) if not math.isfinite(value)]
        if beyond:
            mark = {"symbol": "triangle-up" if label == "own" else "triangle-up-open", "size": 10, "color": colour}
            drawn.add_trace(
                go.Scatter(
                    x=beyond, y=[top] * len(beyond), text=[names[number] for number in beyond], mode="markers", marker=mark,
                    name=f"{label}, infinite", hovertemplate="%{text}: infinite<extra></extra>",
                )
            )  # fmt: skip
    if any(trace.name.endswith("infinite") for trace in drawn.data):
        drawn.add_hline(y=top, line={"color": "#9aa0a6", "width": 1})
        # A note on a logarithmic axis is placed by the logarithm.
        drawn.add_annotation(
            x=1, xref="paper", xanchor="left", y=math.log10(top), text=" ∞", showarrow=False, font={"size": 16}
        )
    _mark_first(drawn, rows)
    starts = {row.layer: number for number, row in reversed(list(enumerate(rows))) if row.layer is not None}
    drawn.update_layout(
        height=460, margin={"l": 70, "r": 40, "t": 90, "b": 50},
        legend={"orientation": "h", "x": 0, "y": 1.14, "yanchor": "bottom"},
        xaxis={
            "title": "layer", "tickvals": list(starts.values())[::-1], "ticktext": [str(one) for one in starts][::-1],
        },
        yaxis={"title": "relative error", "type": "log", "exponentformat": "power", "dtick": 1},
    )  # fmt: skip
    return drawn


def _mark_first(drawn: Figure, rows: list[Row]) -> None:
    """A line at the first tensor out of tolerance, and its name above it on the side where there is room."""
    first = _first(rows)
    if first is not None:
        side = "left" if first < len(rows) / 2 else "right"
        drawn.add_vline(x=first, line={"color": "#8c1d18"})
        drawn.add_annotation(
            x=first, y=1, yref="paper", text=rows[first].name, showarrow=False, font={"color": "#8c1d18"},
            xanchor=side, yanchor="bottom",
        )  # fmt: skip
