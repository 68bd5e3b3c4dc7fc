"""Python, the system, bestiary itself and the packages it stands on."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from bestiary.core.doctor.findings import Finding
from bestiary.core.version import __version__

# Shown though nothing is wrong with them: what most questions are about.
_SHOWN = ("torch", "triton", "transformers", "safetensors", "tokenizers")


def environment() -> Iterator[Finding]:
    """What runs, in which versions, and whether bestiary supports those."""
    yield Finding("python", f"{platform.python_version()}, {sys.executable}")
    yield Finding("system", f"{platform.platform()}, {os.cpu_count()} processors")
    # The package itself may be broken: its place is told from this file's.
    yield Finding("bestiary", f"{__version__}, in {Path(__file__).resolve().parents[2]}")
    for name in sorted(name for name in os.environ if name.startswith("BESTIARY_")):
        yield Finding(name, repr(os.environ[name]))
    try:
        distribution = metadata.distribution("bestiary")
    except metadata.PackageNotFoundError:
        yield Finding("bestiary", "is not installed: it runs from a checkout, so what it needs is not known", "warning")
        return
    if distribution.version != __version__:
        text = f"its metadata says {distribution.version}: install it again"
        yield Finding("bestiary", text, "warning")
    yield from packages([Requirement(line) for line in distribution.requires or ()])


def packages(requirements: list[Requirement]) -> Iterator[Finding]:
    """Those that matter, and those that are missing or out of range."""
    needed = {one.name: one for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})}
    convert = {
        one.name: one for one in requirements if one.marker is not None and one.marker.evaluate({"extra": "convert"})
    }
    for name, requirement in {**convert, **needed}.items():
        finding = _package(requirement, optional=name not in needed)
        if name in _SHOWN or finding.level != "ok":
            yield finding
    for name in _SHOWN:
        if name not in needed and name not in convert:
            yield _package(Requirement(name), optional=True)


def _package(requirement: Requirement, *, optional: bool) -> Finding:
    name, wanted = requirement.name, f", supported: {requirement.specifier}" if requirement.specifier else ""
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(name, f"is not installed{wanted}", "note" if optional else "error")
    if requirement.specifier.contains(found, prereleases=True):
        return Finding(name, f"{found}{wanted}")
    return Finding(name, f"{found}{wanted}", "warning" if optional else "error")
