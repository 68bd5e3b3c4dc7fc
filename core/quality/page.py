"""The page of ``bestiary quality``."""

from __future__ import annotations

from bestiary.core.quality.figures import Rows
from bestiary.core.quality.report import QualityReport
from bestiary.core.reports.page import Page

_FLOOR = 1e-12  # of a logarithmic axis; below it is noise of float32


def page(report: QualityReport, rows: Rows) -> Page:
    """Figures, where in the text the sides part, how often by how much, and the worst tokens."""
    import plotly.graph_objects as go

    made = Page(
        f"Quality of {report.model}",
        f"against {report.reference}, on {report.tokens} tokens of {report.text} in windows of {report.window}",
    )
    made.table(("figure", "model", "reference"), report.lines())
    divergence = rows.column("divergence")
    apart = divergence[divergence.isfinite()].clamp(min=_FLOOR)
    if len(apart) < len(divergence):
        made.text(f"Of {len(divergence) - len(apart)} tokens the divergence is not finite: no plot shows them.")
    if not len(apart):
        return made
    made.heading("How far apart the predictions are")
    histogram = go.Figure(go.Histogram(x=apart.log10().tolist(), nbinsx=60))
    histogram.update_layout(
        xaxis_title="log₁₀ of KL(reference ‖ model), nats", yaxis_title="tokens", height=320, bargap=0.05
    )
    made.figure(histogram, f"Each token's divergence; none is drawn below {_FLOOR:g}, where float32 has only noise.")
    along = go.Figure(go.Scattergl(y=apart.tolist(), mode="markers", marker={"size": 4, "opacity": 0.5}))
    along.update_layout(xaxis_title="token of the text", yaxis_title="KL, nats", yaxis_type="log", height=320)
    made.figure(along, "Where in the text.")
    own, other = (-rows.column(name) for name in ("ours", "reference"))
    both = go.Figure(go.Scattergl(x=other.tolist(), y=own.tolist(), mode="markers", marker={"size": 4, "opacity": 0.4}))
    most = float(max(own.max(), other.max()))
    both.add_shape(type="line", x0=0, y0=0, x1=most, y1=most, line={"dash": "dot", "color": "#9aa0a6"})
    both.update_layout(
        xaxis_title="reference: −log p of the text's token, nats", yaxis_title="model: −log p, nats", height=420
    )
    made.figure(both, "Each token of the text: above the line the model finds it less likely than the reference does.")
    if report.worst:
        made.heading("The tokens that differ most")
        made.table(report.WORST, report.worst_lines())
    return made
