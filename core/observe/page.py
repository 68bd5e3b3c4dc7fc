"""A recording as a page: time by op, where ops lie under the roofs, and the steps one after the other."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bestiary.core.observe.record import Recording
from bestiary.core.observe.recorder import Step
from bestiary.core.observe.roofs import Roofs
from bestiary.core.observe.summary import Row, by_kernel, by_op
from bestiary.core.observe.text import (
    CALL_HEADINGS,
    call_rows,
    notes,
    outside_text,
    roofs_text,
    step_title,
    sum_headings,
    sum_rows,
)
from bestiary.core.reports.page import Page

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# Ops that the timeline tells apart; the others are one.
_APART = 7
_COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e")
_SYMBOLS = ("circle", "diamond", "square", "cross")  # where the colours come again
_BETWEEN = "#d5d8dc"


def page(title: str, about: str, device: str, found: Recording, listed: Sequence[Step]) -> Page:
    """The page of a recording, with the calls of the listed steps."""
    made = Page(title, about)
    made.text(f"{outside_text(found)}.")
    made.text(roofs_text(found.roofs) + ".")
    ops = by_op(found.calls, found.roofs)
    made.heading("Time by op")
    made.figure(
        _bars(ops), "Time in the calls of each op. Beside it: the share of all calls, and the fraction of the roof."
    )
    made.table(sum_headings("op"), sum_rows(ops))
    made.heading("Under the roofs")
    made.figure(
        _roofline(ops, found.roofs),
        "Flops a second against flops a byte, all calls of an op together; the area is the time. Under the slope memory is the "
        "limit, under the plateau arithmetic. Ops without flops are not shown.",
    )
    made.heading("Steps")
    made.figure(_timeline(found.steps, [row.name for row in ops]), "Time of each step, by op and between the calls.")
    made.heading("Time by kernel")
    made.table(sum_headings("op=kernel"), sum_rows(by_kernel(found.calls, found.roofs)))
    for step in listed:
        made.heading(step_title(step).partition(",")[0].capitalize())
        made.text(step_title(step))
        made.table(CALL_HEADINGS, call_rows(step))
    made.heading("Notes")
    for note in notes(device):
        made.text(note)
    return made


def _layout(figure: Figure, **layout: Any) -> Figure:
    # The buttons that appear above a plot have the margin to themselves.
    figure.update_layout(template="plotly_white", margin={"l": 70, "r": 30, "t": 40, "b": 60}, **layout)
    return figure


def _bars(rows: Sequence[Row]) -> Figure:
    import plotly.graph_objects as go

    rows = rows[::-1]  # the longest on top
    texts = [f"{row.share:.1%} · roof {row.roof:.1%}" if row.roof is not None else "" for row in rows]
    bar = go.Bar(
        x=[row.seconds * 1e3 for row in rows],
        y=[row.name for row in rows],
        text=[f" {text}" for text in texts],
        textposition="outside",
        cliponaxis=False,
        orientation="h",
        marker_color=_COLOURS[0],
        hovertemplate="%{y}: %{x:.3f} ms<extra></extra>",
    )
    figure = _layout(go.Figure(bar), height=120 + 28 * len(rows), xaxis_title="time in calls, ms")
    longest = max((row.seconds for row in rows), default=0.0) * 1e3
    figure.update_xaxes(range=[0, longest * 1.25])  # room for the text behind the longest
    figure.update_yaxes(automargin=True, ticksuffix="  ")
    return figure


def _roofline(rows: Sequence[Row], roofs: Roofs) -> Figure:
    import plotly.graph_objects as go

    shown = [(row, row.intensity, row.rate) for row in rows if row.intensity and row.rate]
    ridge = roofs.flops / roofs.bandwidth
    left = min([ridge / 100, *(intensity for _, intensity, _ in shown)]) / 2
    right = max([ridge * 10, *(intensity for _, intensity, _ in shown)]) * 2
    xs = [left, ridge, right]
    roof = go.Scatter(
        x=xs,
        y=[min(roofs.flops, roofs.bandwidth * x) / 1e9 for x in xs],
        mode="lines",
        name="roof",
        line={"color": "#60656c", "width": 2},
        hovertemplate="%{x:.2f} flop/byte: %{y:.1f} GFLOP/s<extra>roof</extra>",
    )
    longest = max([row.seconds for row, *_ in shown], default=1.0)
    # Names beside the dots would lie on each other where ops are alike.
    dots = [
        go.Scatter(
            x=[intensity],
            y=[rate / 1e9],
            mode="markers",
            name=row.name,
            marker={
                "size": 8 + 32 * math.sqrt(row.seconds / longest),
                "color": _COLOURS[number % len(_COLOURS)],
                "symbol": _SYMBOLS[number // len(_COLOURS) % len(_SYMBOLS)],
                "line": {"color": "#fff", "width": 1},
            },
            hovertemplate=f"{row.name}: %{{x:.2f}} flop/byte, %{{y:.2f}} GFLOP/s<extra></extra>",
        )
        for number, (row, intensity, rate) in enumerate(shown)
    ]
    figure = _layout(go.Figure([roof, *dots]), height=480, legend={"itemsizing": "constant"}, showlegend=True)
    decades = {"type": "log", "dtick": 1, "exponentformat": "power"}
    figure.update_xaxes(title="flops a byte", range=[math.log10(left), math.log10(right)], **decades)
    figure.update_yaxes(title="GFLOP/s", **decades)
    return figure


def _timeline(steps: Sequence[Step], names: Sequence[str]) -> Figure:
    import plotly.graph_objects as go

    apart = list(names[:_APART])
    sums = [_times(step, apart) for step in steps]
    others = ["other ops"] if len(names) > len(apart) else []
    labels = [f"{step.kind}, {step.tokens} tokens of {step.sequences}" for step in steps]
    bars = [
        go.Bar(
            x=[step.number for step in steps],
            y=[times[name] * 1e3 for times in sums],
            name=name,
            marker_color=_BETWEEN if name == "between calls" else _COLOURS[number % len(_COLOURS)],
            customdata=labels,
            hovertemplate="step %{x} (%{customdata}): %{y:.3f} ms<extra>%{fullData.name}</extra>",
        )
        for number, name in enumerate([*apart, *others, "between calls"])
    ]
    figure = _layout(
        go.Figure(bars), height=420, barmode="stack", legend={"orientation": "h", "y": -0.2, "traceorder": "normal"}
    )
    figure.update_xaxes(title="step", title_standoff=4, tickformat="d", dtick=1 if len(steps) < 20 else None)
    figure.update_yaxes(title="time, ms")
    return figure


def _times(step: Step, apart: Sequence[str]) -> Counter[str]:
    times: Counter[str] = Counter()
    for call in step.calls:
        times[call.op if call.op in apart else "other ops"] += call.seconds  # type: ignore[assignment]
    times["between calls"] = step.seconds - step.in_calls  # type: ignore[assignment]
    return times
