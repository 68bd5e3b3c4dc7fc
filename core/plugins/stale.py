"""Metadata that no longer says what is there: folders that are gone, modules that are gone, copies that shadow others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from packaging.utils import canonicalize_name

from bestiary.core.plugins.code import spec_of
from bestiary.core.plugins.discover import GROUP, SDK, folder_of


class Oddity(NamedTuple):
    """What is odd about a distribution's metadata, and what to do, as a sentence."""

    distribution: str
    text: str


def oddities() -> Iterator[Oddity]:
    """Of bestiary's distributions and of those with plugins. Nothing is imported."""
    seen: dict[str, metadata.Distribution] = {}
    for distribution in metadata.distributions():
        try:
            entries = list(distribution.entry_points.select(group=GROUP))
            name = canonicalize_name(distribution.metadata["Name"] or "unnamed")
            if entries or name == SDK or name.startswith(f"{SDK}-"):
                yield from _of(distribution, name, entries, seen)
        except Exception as error:
            folder = folder_of(distribution)
            yield Oddity(folder, f"its metadata can't be read ({type(error).__name__}: {error}): install it again")


def _of(
    distribution: metadata.Distribution,
    name: str,
    entries: list[metadata.EntryPoint],
    seen: dict[str, metadata.Distribution],
) -> Iterator[Oddity]:
    here, first = folder_of(distribution), seen.setdefault(name, distribution)
    if first is not distribution and first.version != distribution.version:
        yield Oddity(name, f"is on sys.path twice: {first.version} counts, {here} is stale and can be removed")
    if (folder := _editable(distribution)) is not None and not folder.is_dir():
        yield Oddity(name, f"was installed from a folder that is gone ({folder.name}): uninstall it, or put it back")
        return
    for entry in entries:
        module = entry.value.partition(":")[0]
        if first is distribution and spec_of(module) is None:
            yield Oddity(name, f"{here} announces {module}, which is gone: remove that folder, or install it again")


def _editable(distribution: metadata.Distribution) -> Path | None:
    """The folder that an editable installation points at."""
    text = distribution.read_text("direct_url.json")
    facts = json.loads(text) if text else {}
    if not isinstance(facts, dict) or not facts.get("dir_info", {}).get("editable"):
        return None
    return Path(unquote(urlsplit(str(facts.get("url", ""))).path))
