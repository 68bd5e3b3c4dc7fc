"""What an installation is made of and what is wrong with it, a section a file. Private; ``bestiary doctor`` is its face."""

from bestiary.core.doctor.examine import examine
from bestiary.core.doctor.findings import Finding, Report, Section

__all__ = ["Finding", "Report", "Section", "examine"]
