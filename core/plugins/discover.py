"""What is installed: the entry points of the group ``bestiary``, each with its distribution, before any import."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import import_module, metadata
from types import ModuleType

from packaging.utils import canonicalize_name

from bestiary.core.plugins.records import Origin
from bestiary.core.version import __version__

log = logging.getLogger("bestiary.plugins")
GROUP = "bestiary"
SDK = "bestiary"
SDK_MODULE = "bestiary.core.plugin"
UNVERSIONED = "unversioned"


@dataclass(frozen=True)
class Candidate:
    """A plugin that could be loaded.

    Args:
        origin: name, distribution, version.
        module: its import string.
        load: imports it and gives the object that holds the hooks.
        reference: what a child process is told, to load the same one.
        distribution: its metadata, where it is installed.
        notes: oddities to show.
    """

    origin: Origin
    module: str
    load: Callable[[], object]
    reference: str
    distribution: metadata.Distribution | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def name(self) -> str:
        return self.origin.plugin

    @property
    def own(self) -> bool:
        """Whether this is the SDK's own plugin."""
        return self.name == SDK and self.origin.distribution == SDK


def installed() -> tuple[Candidate, ...]:
    """All entry points of the group, by name and distribution; the SDK's own first.

    A distribution that is seen twice on ``sys.path`` (a stale egg-info) counts once, as Python itself would import it;
    the other copy becomes a note. Two distributions with one entry-point name are both given.
    """
    first: dict[str, list[Candidate]] = {}
    for distribution in metadata.distributions():
        name, entries = _announced(distribution)
        if not entries:
            continue
        if name in first:
            first[name] = [_with_note(candidate, distribution) for candidate in first[name]]
        elif _is_first(distribution, name):
            first[name] = [_candidate(entry, distribution, name) for entry in entries]
    found = [candidate for candidates in first.values() for candidate in candidates]
    if not any(candidate.own for candidate in found):
        found.append(_sdk())
    return tuple(sorted(found, key=lambda c: (not c.own, c.name, c.origin.distribution)))


def _announced(distribution: metadata.Distribution) -> tuple[str, list[metadata.EntryPoint]]:
    """The distribution's name and its plugins; none where its metadata can't be read, which must not stop the others."""
    try:
        entries = list(distribution.entry_points.select(group=GROUP))
        # The name is read for plugins only: there may be hundreds of other distributions.
        return canonicalize_name(distribution.metadata["Name"] or "unnamed") if entries else "", entries
    except Exception as error:
        log.warning("a distribution's metadata can't be read and is left out: %s: %s", folder_of(distribution), error)
        return "", []


def folder_of(distribution: metadata.Distribution) -> str:
    """The name of the folder (or file) that holds the metadata, ``bestiary_llama-0.1.0.dist-info``."""
    return str(getattr(getattr(distribution, "_path", None), "name", "an unnamed folder"))


def given(plugin: str | object, known: tuple[Candidate, ...]) -> Candidate:
    """The candidate for an element of ``plugins=[…]``: a dotted module name, a module, or any object with hooks.

    A module that an installed distribution announces is that distribution's plugin, not a second one.
    """
    name = plugin if isinstance(plugin, str) else _name_of(plugin)
    for candidate in known:
        if candidate.module == name:
            return candidate
    if isinstance(plugin, str):
        return Candidate(Origin(plugin, plugin, UNVERSIONED), plugin, lambda: import_module(plugin), f"module:{plugin}")
    version = str(getattr(plugin, "__version__", UNVERSIONED))
    importable = isinstance(plugin, ModuleType)
    reference = f"module:{name}" if importable else f"object:{name}"
    return Candidate(Origin(name, name, version), name, lambda: plugin, reference)


def _name_of(plugin: object) -> str:
    named = isinstance(plugin, ModuleType | type)
    return str(getattr(plugin, "__name__", "")) if named else f"{type(plugin).__module__}.{type(plugin).__qualname__}"


def _sdk() -> Candidate:
    """The SDK's own parts in a checkout that was never installed, where no entry point exists."""
    return Candidate(Origin(SDK, SDK, __version__), SDK_MODULE, lambda: import_module(SDK_MODULE), SDK)


def _candidate(entry: metadata.EntryPoint, distribution: metadata.Distribution, name: str) -> Candidate:
    origin = Origin(entry.name, name, distribution.version or UNVERSIONED)
    return Candidate(origin, entry.value, entry.load, entry.name, distribution)


def _is_first(distribution: metadata.Distribution, name: str) -> bool:
    """Whether no copy without an entry point stands before this one on ``sys.path``."""
    try:
        return bool(metadata.distribution(name).entry_points.select(group=GROUP))
    except metadata.PackageNotFoundError:
        return True


def _with_note(candidate: Candidate, other: metadata.Distribution) -> Candidate:
    origin, kept = candidate.origin, candidate.distribution
    # A checkout beside its own installation is seen twice all the time; only another version is worth a word.
    if kept is None or kept.version == other.version:
        return candidate
    note = f"{origin.distribution} is on sys.path twice; {origin.version} is used, {other.version} is ignored"
    return replace(candidate, notes=(*candidate.notes, note))
