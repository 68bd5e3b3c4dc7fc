"""The findings as JSON that others may rely on."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from bestiary.core.doctor.findings import Level, Report
from bestiary.core.reports.schema import JsonReport


class FindingDocument(BaseModel):
    """One finding."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    subject: str = Field(description="What it is about: a package, a plugin, an op, a kernel as OP=NAME. No unit.")
    text: str = Field(description="What was found, for people. No unit.")
    level: Level = Field(
        description="ok and note: what is; warning: it works, but look at it; error: something can't be used; failed: the "
        "examination broke. No unit."
    )


class DoctorReport(JsonReport):
    """What ``bestiary doctor --json`` prints."""

    schema_name = "doctor"

    sections: dict[str, tuple[FindingDocument, ...]] = Field(
        description="Findings by section, in the order in which they are shown. No unit."
    )
    exit_status: int = Field(
        description="0: everything can be used; 69: something can't; 70: a section could not be examined. No unit."
    )


def document(report: Report) -> DoctorReport:
    """The document of a report."""
    sections = {
        part.name: tuple(FindingDocument(**vars(finding)) for finding in part.findings) for part in report.sections
    }
    return DoctorReport(sections=sections, exit_status=report.exit_status)
