"""All examinations, each on its own: what breaks in one leaves the others as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from bestiary.core.doctor.findings import Finding, Report, Section, section

if TYPE_CHECKING:
    from bestiary.core.plugins import PluginHost
    from bestiary.core.plugins.discover import Candidate


def examine(
    load: Callable[[], PluginHost],
    candidates: Callable[[], tuple[Candidate, ...]],
    model: str | None = None,
    said: Mapping[str, Any] | None = None,
    *,
    tests: bool = True,
    each: Callable[[Section], None] = lambda found: None,
) -> Report:
    """Examine this installation.

    Args:
        load: gives the plugins, or raises what is wrong with them.
        candidates: gives what would be loaded, without importing it.
        model: a local model that is to run here, with the build options that were said for it.
        tests: run kernels too, for some seconds.
        each: is given every section when it is done.
    """
    options = dict(said or {})

    def environment() -> Iterator[Finding]:
        from bestiary.core.doctor.environment import environment

        yield from environment()

    def torch() -> Iterator[Finding]:
        from bestiary.core.doctor.match import match

        yield from match()

    def processor() -> Iterator[Finding]:
        from bestiary.core.doctor.processor import processor

        yield from processor()

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

    def fits() -> Iterator[Finding]:
        from bestiary.core.doctor.fit import fit

        assert model is not None
        yield from fit(load, model, options)

    def self_test() -> Iterator[Finding]:
        from bestiary.core.doctor.self_test import self_test

        yield from self_test(load, model, options)

    found: list[Section] = []

    def add(name: str, examination: Callable[[], Iterator[Finding]]) -> None:
        found.append(section(name, examination))
        each(found[-1])

    for part in (environment, torch, processor, devices, plugins, metadata, lock, kernels, home):
        add(part.__name__, part)
    if model is not None:
        add("model", fits)
    if tests:
        add("self-test", _untested if model is not None and _broke(found[-1]) else self_test)
    return Report(tuple(found))


def _broke(found: Section) -> bool:
    """Whether an examination ended before it was done."""
    return any(one.subject == found.name and one.level in ("error", "failed") for one in found.findings)


def _untested() -> Iterator[Finding]:
    yield Finding("self-test", "is not made: the model can't be read", "note")
