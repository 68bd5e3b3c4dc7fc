"""Where a measurement was made, so that its figures can be told from another's."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib import metadata

from pydantic import Field

from bestiary.core.plugins import PluginHost
from bestiary.core.reports.schema import ReportPart
from bestiary.core.version import __version__

_PACKAGES = ("torch", "triton", "numpy", "tokenizers", "httpx")


class Device(ReportPart):
    """The processor or a GPU."""

    name: str = Field(description="cpu, or as torch names it")
    model: str = Field(description="what it calls itself")
    memory_bytes: int | None = Field(description="of it in all; null: not known")


class Environment(ReportPart):
    """Versions and machine."""

    bestiary: str = Field(description="version")
    python: str = Field(description="version")
    system: str = Field(description="name and version of the operating system")
    processors: int = Field(description="that this process may use")
    threads: int | None = Field(description="that torch computes with; null: no engine in this process")
    packages: dict[str, str] = Field(description="versions of the packages that figures may depend on")
    plugins: dict[str, str] = Field(description="versions of the plugins that were loaded")
    devices: list[Device] = Field(description="of this machine; empty where no engine runs in this process")


def environment(host: PluginHost | None) -> Environment:
    """Of this process.

    Args:
        host: the plugins of the engines in this process; None where there is no engine, and torch is not imported.
    """
    return Environment(
        bestiary=__version__,
        python=platform.python_version(),
        system=platform.platform(),
        processors=_processors(),
        threads=None if host is None else _threads(),
        packages={name: version for name in _PACKAGES if (version := _version(name)) is not None},
        plugins={} if host is None else _plugins(host),
        devices=[] if host is None else list(_devices()),
    )


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _devices() -> Sequence[Device]:
    from bestiary.core.device import inventory

    return [Device(name=one.name, model=one.model, memory_bytes=one.memory) for one in inventory() if not one.problem]


def _plugins(host: PluginHost) -> dict[str, str]:
    return {one.origin.plugin: one.origin.version for one in host.records() if one.state == "loaded"}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
