"""The page of ``bestiary quality``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bestiary.core.quality.figures import Rows
from bestiary.core.quality.report import ModelQuality, QualityReport
from bestiary.core.reports.page import Page

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_FLOOR = 1e-12  # of a logarithmic axis; below it is noise of float32
_KL = "KL(reference ‖ model), nats"


def page(report: QualityReport, rows: Sequence[Rows]) -> Page:
    """Figures; of one model also where in the text the sides part, how often by how much, and the worst tokens."""
    named = report.models[0].model if len(report.models) == 1 else f"{len(report.models)} models"
    made = Page(
        f"Quality of {named}",
        f"against {report.reference}, on {report.tokens} tokens of {report.text} in windows of {report.window}",
    )
    made.table(*report.table())
    made.text(report.begin.sentence())
    if len(report.models) == 1:
        _alone(made, report.models[0], rows[0])
    else:
        made.heading("How far apart the predictions are")
        made.figure(_beside(report.models), f"{_KL}, of each model. A figure that is 0 or not finite is not drawn.")
    return made


def _alone(made: Page, model: ModelQuality, rows: Rows) -> None:
    divergence = rows.column("divergence")
    apart = divergence[divergence.isfinite()].clamp(min=_FLOOR)
    if len(apart) < len(divergence):
        made.text(f"Of {len(divergence) - len(apart)} tokens the divergence is not finite: no plot shows them.")
    if not len(apart):
        return
    made.heading("How far apart the predictions are")
    made.figure(
        _histogram(apart), f"Each token's divergence; none is drawn below {_FLOOR:g}, where float32 has only noise."
    )
    made.figure(_along(apart), "Where in the text.")
    made.figure(
        _both(*(-rows.column(name) for name in ("ours", "reference"))),
        "Each token of the text: above the line the model finds it less likely than the reference does.",
    )
    if model.worst:
        made.heading("The tokens that differ most")
        made.table(model.WORST, model.worst_lines())


def _beside(models: Sequence[ModelQuality]) -> Figure:
    """A row a model: median, mean and 99th percentile of its divergence."""
    import plotly.graph_objects as go

    figure, drawn = go.Figure(), []
    for name, symbol in (("median", "circle-open"), ("mean", "circle"), ("p99", "line-ns-open")):
        values = [one.divergence.mean.value if name == "mean" else getattr(one.divergence, name) for one in models]
        shown = [value if value > 0 and math.isfinite(value) else None for value in values]
        drawn += [value for value in shown if value is not None]
        places = list(range(len(models)))
        figure.add_trace(go.Scatter(x=shown, y=places, name=name, mode="markers", marker={"symbol": symbol, "size": 9}))
    figure.update_layout(
        xaxis=log_axis(drawn, title=_KL),
        yaxis={
            "tickvals": list(range(len(models))),
            "ticktext": [one.model.replace("<", "&lt;") for one in models],
            "range": [len(models) - 0.5, -0.5],
            "automargin": True,
        },
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        height=160 + 28 * len(models),
    )
    return figure


def _histogram(apart: Tensor) -> Figure:
    """Over equal steps of the logarithm, the axis in nats."""
    import plotly.graph_objects as go

    figure = go.Figure(go.Histogram(x=apart.log10().tolist(), nbinsx=60))
    axis = log_axis(apart.tolist(), title=_KL)
    linear = {"title": axis["title"], "tickvals": [math.log10(one) for one in axis["tickvals"]]}
    figure.update_layout(xaxis={**linear, "ticktext": axis["ticktext"]}, yaxis_title="tokens", height=320, bargap=0.05)
    return figure


def _along(apart: Tensor) -> Figure:
    import plotly.graph_objects as go

    figure = go.Figure(go.Scattergl(y=apart.tolist(), mode="markers", marker={"size": 4, "opacity": 0.5}))
    figure.update_layout(xaxis_title="token of the text", yaxis=log_axis(apart.tolist(), title="KL, nats"), height=320)
    return figure


def _both(own: Tensor, other: Tensor) -> Figure:
    import plotly.graph_objects as go

    figure = go.Figure(
        go.Scattergl(x=other.tolist(), y=own.tolist(), mode="markers", marker={"size": 4, "opacity": 0.4})
    )
    both = torch.cat([own, other])
    most = float(both[both.isfinite()].max())
    figure.add_shape(type="line", x0=0, y0=0, x1=most, y1=most, line={"dash": "dot", "color": "#9aa0a6"})
    figure.update_layout(
        xaxis_title="reference: −log p of the text's token, nats", yaxis_title="model: −log p, nats", height=420
    )
    return figure


def log_axis(values: Sequence[float], *, title: str) -> dict[str, Any]:
    """A logarithmic axis over positive values with ticks at powers of ten, at most eight; at 1, 2 and 5 within two decades."""
    low, high = (math.log10(bound(values, default=1.0)) for bound in (min, max))
    first, last = math.floor(low), math.ceil(high)
    if high - low <= 2:
        ticks = [digit * 10.0**power for power in range(first, last + 1) for digit in (1, 2, 5)]
    else:
        ticks = [10.0**power for power in range(first, last + 1, -(-(last - first) // 7))]
    texts = [f"{tick:.0e}".replace("e-0", "e-").replace("e+0", "e+") if tick < 1e-3 else f"{tick:g}" for tick in ticks]
    room = 0.05 * max(high - low, 0.2)
    return {"type": "log", "title": title, "tickvals": ticks, "ticktext": texts, "range": [low - room, high + room]}
