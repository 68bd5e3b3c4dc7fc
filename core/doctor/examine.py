"""All examinations, each on its own: what breaks in one leaves the others as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from bestiary.core.doctor.findings import Finding, Report, section

if TYPE_CHECKING:
    from bestiary.core.plugins import PluginHost
    from bestiary.core.plugins.discover import Candidate


def examine(load: Callable[[], PluginHost], candidates: Callable[[], tuple[Candidate, ...]]) -> Report:
    """Examine this installation.

    Args:
        load: gives the plugins, or raises what is wrong with them.
        candidates: gives what would be loaded, without importing it.
    """

    def environment() -> Iterator[Finding]:
        from bestiary.core.doctor.environment import environment

        yield from environment()

    def devices() -> Iterator[Finding]:
        from bestiary.core.doctor.devices import devices

        yield from devices()

    def plugins() -> Iterator[Finding]:
        from bestiary.core.doctor.plugins import plugins

        yield from plugins(load)

    def metadata() -> Iterator[Finding]:
        from bestiary.core.plugins.stale import oddities

        for one in oddities():
            yield Finding(one.distribution, one.text, "warning")

    def lock() -> Iterator[Finding]:
        from bestiary.core.doctor.lock import lock

        yield from lock(candidates)

    def kernels() -> Iterator[Finding]:
        from bestiary.core.doctor.kernels import kernels

        yield from kernels(load)

    def home() -> Iterator[Finding]:
        from bestiary.core.doctor.home import home

        yield from home()

    parts = (environment, devices, plugins, metadata, lock, kernels, home)
    return Report(tuple(section(one.__name__, one) for one in parts))
