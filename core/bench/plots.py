"""The plots of a bench page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bestiary.core.bench.columns import better
from bestiary.core.bench.compare import COMPARED, Comparison
from bestiary.core.bench.measure import Run
from bestiary.core.bench.reports import PointReport
from bestiary.core.runtime.steps import StepRecord

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

#: Two targets keep their colours in all plots.
COLORS = ("#2563eb", "#d97706")
_MORE = ("#059669", "#7c3aed", "#dc2626", "#0891b2", "#65a30d", "#be185d")
_QUANTILES = np.linspace(0, 100, 201)
_MOST_STEPS = 2000  # of a timeline; more are thinned
_LAYOUT: dict[str, Any] = {
    "template": "plotly_white",
    "margin": {"l": 70, "r": 20, "t": 40, "b": 60},
    "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0},
    "font": {"size": 13},
}

#: Of the plots against the load: the title, by what figures are multiplied, and two figures of each target.
_PANELS = (
    ("time to first token, ms", 1000.0, (("ttft_p50_s", "p50"), ("ttft_p99_s", "p99"))),
    ("time between tokens, ms", 1000.0, (("itl_p50_s", "p50"), ("itl_p99_s", "p99"))),
    ("answer tokens a second", 1.0, (("output_tokens_per_s", "all users"), ("user_tokens_per_s", "one user"))),
    ("requests a second", 1.0, (("requests_per_s", "answered"), ("goodput_per_s", "within the objective"))),
)
#: How the two are drawn: where they are one, both are seen.
_LOOKS: tuple[dict[str, Any], ...] = (
    {"line": {"width": 4}, "marker": {"size": 10}, "opacity": 0.45},
    {"line": {"width": 1.5, "dash": "dash"}, "marker": {"size": 7, "symbol": "x"}},
)
_PANEL, _LEGEND_LINE = 260, 20  # pixels


def load_curves(points: Sequence[PointReport], x_title: str) -> Figure:
    """Latencies and throughput against the load: medians over the repeats, bars from the smallest to the largest.

    Each panel has a legend of its own, with its title above.
    """
    from plotly.subplots import make_subplots

    names = list(dict.fromkeys(point.target for point in points))
    lines = _LEGEND_LINE * (1 + 2 * len(names))  # pixels of the largest legend
    height = 2 * (_PANEL + lines) + 120
    spacing = (lines + 80) / (height - lines - 110)
    figure = make_subplots(rows=2, cols=2, vertical_spacing=spacing, horizontal_spacing=0.1)
    for number, (title, scale, figures) in enumerate(_PANELS):
        legend, axis = (f"{kind}{number + 1}" if number else kind for kind in ("legend", "axis"))
        for name, color in zip(names, COLORS, strict=False):
            own = [point for point in points if point.target == name]
            for (field, label), look in zip(figures, _LOOKS, strict=True):
                if curve := _curve(own, field, scale):
                    text = f"{name}: {label}" if len(names) > 1 else label
                    trace = _line(curve, text, color, look).update(legend=legend, showlegend=True)
                    figure.add_trace(trace, row=number // 2 + 1, col=number % 2 + 1)
        left, top = figure.layout[f"x{axis}"].domain[0], figure.layout[f"y{axis}"].domain[1]
        place = {"x": left, "xanchor": "left", "y": top, "yanchor": "bottom", "tracegroupgap": 0}
        figure.update_layout({legend: {**place, "title": {"text": f"<b>{title}</b>"}}})
    figure.update_xaxes(title_text=x_title, rangemode="tozero")
    figure.update_yaxes(rangemode="tozero")
    margin = {"l": 60, "r": 20, "t": lines + 50, "b": 60}  # above the legends lie the plot's buttons
    return figure.update_layout(template="plotly_white", font={"size": 13}, height=height, margin=margin)


def distribution(runs: Sequence[Run], what: str, title: str) -> Figure:
    """How many answers (or tokens) took how long: on the left a histogram, on the right the part that took at most so long.

    Args:
        what: ``first`` (times to first token), ``intervals`` (times between tokens) or ``total``.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=1, cols=2, subplot_titles=("histogram", "part that took at most so long, %"))
    groups = _grouped(runs, what)
    everything = np.concatenate(list(groups.values()))
    edges = np.histogram_bin_edges(everything[everything <= np.percentile(everything, 99.5)], bins=40)
    for (name, values), color in zip(groups.items(), (*COLORS, *_MORE) * len(groups), strict=False):
        counts, _ = np.histogram(values, bins=edges)
        centers = (edges[:-1] + edges[1:]) / 2
        bars = go.Bar(
            x=_short(centers), y=_short(counts / len(values) * 100), width=float(edges[1] - edges[0]), name=name,
            marker_color=color, opacity=0.55, legendgroup=name,
        )  # fmt: skip
        steps = go.Scatter(
            x=_short(np.percentile(values, _QUANTILES)), y=_short(_QUANTILES), mode="lines", name=name, legendgroup=name,
            showlegend=False, line={"color": color},
        )  # fmt: skip
        figure.add_trace(bars, row=1, col=1)
        figure.add_trace(steps, row=1, col=2)
    figure.update_xaxes(title_text=f"{title}, ms", rangemode="tozero")
    figure.update_yaxes(title_text="%", rangemode="tozero")
    margin = {"l": 60, "r": 20, "t": 120, "b": 55}
    figure.update_layout(**{**_LAYOUT, "height": 460, "barmode": "overlay", "margin": margin})
    figure.update_layout(showlegend=len(groups) > 1, legend={"y": 1.12})
    return figure


def timeline(run: Run) -> Figure:
    """What an engine did step by step: tokens of a step, requests, KV blocks and the time of a step."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    assert run.side is not None
    zero, blocks = min(record.due for record in run.records), max(1, run.side.blocks)
    steps = _with_pauses(run.side.steps)
    steps = steps[:: max(1, -(-len(steps) // _MOST_STEPS))]
    at = _short([step.at - zero for step in steps])
    titles = ("tokens of a step", "requests", "KV cache in use, %", "time of a step, ms")
    figure = make_subplots(rows=4, cols=1, shared_xaxes=True, subplot_titles=titles, vertical_spacing=0.06)
    rows: tuple[tuple[int, str, list[float], str, bool], ...] = (
        (1, "decodes", [step.decodes for step in steps], COLORS[0], True),
        (1, "prompt tokens", [step.prompt_tokens for step in steps], COLORS[1], True),
        (2, "running", [step.running for step in steps], _MORE[0], False),
        (2, "waiting", [step.waiting for step in steps], _MORE[2], False),
        (3, "KV cache", [step.blocks_used / blocks * 100 for step in steps], _MORE[1], False),
        (4, "step", [float("nan") if s.seconds is None else s.seconds * 1000 for s in steps], _MORE[3], False),
    )
    for row, name, values, color, stacked in rows:
        style: dict[str, Any] = {"line": {"color": color, "width": 1, "shape": "vh"}, "mode": "lines"}
        if stacked:
            style |= {"stackgroup": "tokens"}
        figure.add_trace(go.Scatter(x=at, y=_short(values), name=name, **style), row=row, col=1)
    figure.update_xaxes(title_text="seconds", row=4, col=1)
    figure.update_yaxes(rangemode="tozero")
    figure.update_layout(**{**_LAYOUT, "height": 800, "margin": {"l": 60, "r": 20, "t": 110, "b": 55}})
    figure.update_layout(legend={"y": 1.05, "traceorder": "normal"})
    return figure


def in_flight(run: Run) -> Figure:
    """Requests under way at a server, which tells nothing of its steps, and the answer tokens that came each half second."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    zero = min(record.due for record in run.records)
    changes = sorted([(r.sent - zero, 1) for r in run.records] + [(r.ended - zero, -1) for r in run.records])
    under_way = np.cumsum([change for _, change in changes])
    pieces = [(at - zero, tokens) for record in run.records for at, tokens in record.pieces]
    edges = np.arange(0.0, changes[-1][0] + 0.5, 0.5)
    edges = edges if len(edges) > 1 else np.array([0.0, 0.5])
    tokens, _ = np.histogram([at for at, _ in pieces], bins=edges, weights=[count for _, count in pieces])
    titles = ("requests under way", "answer tokens a second")
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, subplot_titles=titles, vertical_spacing=0.12)
    line = {"color": COLORS[0], "shape": "hv", "width": 1}
    figure.add_trace(go.Scatter(x=_short([at for at, _ in changes]), y=under_way.tolist(), line=line), row=1, col=1)
    bars = go.Bar(x=_short((edges[:-1] + edges[1:]) / 2), y=_short(tokens / 0.5), width=0.5, marker_color=COLORS[0])
    figure.add_trace(bars, row=2, col=1)
    figure.update_xaxes(title_text="seconds", row=2, col=1)
    figure.update_yaxes(rangemode="tozero")
    figure.update_layout(**{**_LAYOUT, "height": 460, "showlegend": False})
    return figure


def compare_bars(found: Sequence[Comparison]) -> Figure:
    """Ratios of one load; lines reach from the smallest to the largest of the repeats. What has no ratio is not drawn."""
    import plotly.graph_objects as go

    had = [(one, one.ratio) for one in found if one.ratio is not None]
    ends = [end for _, ratio in had for end in (ratio.low, ratio.high) if end > 0]
    reach = max(1.1, *ends, *(1 / end for end in ends)) ** 1.1
    # A ratio of 0 has no place on a logarithmic axis; it is drawn to the axis' end.
    low, median, high = (
        np.maximum([getattr(ratio, end) for _, ratio in had], 1 / reach) for end in ("low", "median", "high")
    )
    bars = go.Bar(
        y=[COMPARED[one.figure].title for one, _ in had],
        x=_short(median - 1),
        base=1,
        orientation="h",
        marker_color=["#9ca3af" if better(one) == "-" else COLORS[better(one) == one.target] for one, _ in had],
        customdata=_short([ratio.median for _, ratio in had]),
        hovertemplate="%{y}: %{customdata:.3f}<extra></extra>",
        error_x={
            "type": "data",
            "symmetric": False,
            "array": _short(high - median),
            "arrayminus": _short(median - low),
            "color": "#374151",
        },
    )
    figure = go.Figure(bars)
    figure.add_vline(x=1, line={"color": "#374151", "width": 1})
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(
        title_text=f"{found[0].target} as a multiple of {found[0].against}",
        type="log",
        range=[-np.log10(reach), np.log10(reach)],
        tickvals=_ticks(reach),
        ticktext=[f"{tick:g}" for tick in _ticks(reach)],
    )
    margin = {"l": 110, "r": 20, "t": 40, "b": 55}
    figure.update_layout(**{**_LAYOUT, "height": 140 + 28 * len(had), "margin": margin})
    return figure


def _ticks(reach: float) -> list[float]:
    """Marks of a logarithmic axis from 1 / reach to reach."""
    above = [tick for tick in (1.02, 1.05, 1.1, 1.2, 1.5, 2, 3, 5, 10, 20, 50, 100, 1000) if tick <= reach]
    above = above[-4:]
    return [*(round(1 / tick, 3) for tick in reversed(above)), 1.0, *above]


def _with_pauses(steps: Sequence[StepRecord]) -> list[StepRecord]:
    """Steps, and between them one of nothing wherever no step was under way. A step's line reaches back to the one before."""
    usual = float(np.median([step.seconds for step in steps if step.seconds is not None] or [0.0]))
    found: list[StepRecord] = []
    for step in steps:
        if step.seconds is None:
            found.append(StepRecord(step.at - usual, None, 0, 0, 0, 0, 0, step.preemptions))
        found.append(step)
    return found


def _grouped(runs: Sequence[Run], what: str) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """Milliseconds of all repeats, by load and target."""
    several = len({run.target.about.name for run in runs}) > 1
    found: dict[str, list[float]] = {}
    for run in runs:
        name = f"{run.point.label}, {run.target.about.name}" if several else run.point.label
        values = found.setdefault(name, [])
        for record in run.records:
            if not record.failed:
                value = getattr(record, what)
                values += value if isinstance(value, list) else [] if value is None else [value]
    return {name: np.array(values) * 1000 for name, values in found.items() if values}


def has(runs: Sequence[Run], what: str) -> bool:
    """Whether there is anything to draw."""
    return bool(_grouped(runs, what))


def _curve(points: Sequence[PointReport], field: str, scale: float) -> list[tuple[float, float, float, float]]:
    """x, median, low, high."""
    found = []
    for point in points:
        spread = getattr(point.summary, field)
        if spread is not None and point.x is not None:
            found.append((point.x, spread.median * scale, spread.low * scale, spread.high * scale))
    return sorted(found)


def _line(curve: Sequence[tuple[float, float, float, float]], name: str, color: str, look: Mapping[str, Any]) -> Any:
    import plotly.graph_objects as go

    return go.Scatter(
        x=[x for x, *_ in curve],
        y=_short([middle for _, middle, _, _ in curve]),
        error_y={
            "type": "data",
            "symmetric": False,
            "array": _short([high - middle for _, middle, _, high in curve]),
            "arrayminus": _short([middle - low for _, middle, low, _ in curve]),
        },
        mode="lines+markers",
        name=name,
        **{**look, "line": {**look["line"], "color": color}},
    )


def _short(values: Any) -> list[float | None]:
    """Numbers in a few characters each; a page holds thousands of them."""
    return [None if value != value else float(f"{value:.5g}") for value in np.asarray(values, dtype=float).tolist()]
