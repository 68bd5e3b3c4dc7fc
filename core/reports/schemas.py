"""Every kind of document that ``--json`` prints and others may rely on. ``docs/schemas`` has the JSON Schema of each."""

from __future__ import annotations

from bestiary.core.plugins.resolve import resolve
from bestiary.core.reports.schema import JsonReport

#: Where their classes are.
KINDS: tuple[str, ...] = (
    "bestiary.core.bench.reports:LatencyReport",
    "bestiary.core.bench.reports:ThroughputReport",
    "bestiary.core.bench.reports:ServeReport",
    "bestiary.core.diff.report:DiffReport",
    "bestiary.core.doctor.document:DoctorReport",
    "bestiary.core.observe.report:TraceReport",
    "bestiary.core.quality.report:QualityReport",
    "bestiary.core.quant.listing:MethodsReport",
    "bestiary.core.quant.report:QuantizeReport",
)


def kinds() -> list[type[JsonReport]]:
    """The classes."""
    return [resolve(place, needed_by="docs/schemas") for place in KINDS]
