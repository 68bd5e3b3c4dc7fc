"""The lock, where there is one: what is not as it says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bestiary.core.doctor.findings import Finding

if TYPE_CHECKING:
    from bestiary.core.plugins.discover import Candidate


def lock(candidates: Callable[[], tuple[Candidate, ...]]) -> Iterator[Finding]:
    """Compare what would be loaded with the file in BESTIARY_LOCKED, else with bestiary.lock if it lies here."""
    from bestiary.core.plugins import lockfile

    file = lockfile.from_environment() or Path(lockfile.NAME)
    if not file.exists() and lockfile.from_environment() is None:
        yield Finding(lockfile.NAME, "none here; bestiary lock writes one", "note")
        return
    differences = lockfile.drift(lockfile.read(file), lockfile.lock(candidates()))
    for one in differences:
        yield Finding(one.distribution, f"found {one.found}, locked is {one.locked}", "warning")
    if not differences:
        yield Finding(file.name, "every plugin is as locked")
