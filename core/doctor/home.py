"""BESTIARY_HOME: where it lies, what it holds, what still fits."""

from __future__ import annotations

import os
from collections.abc import Iterator

from bestiary.core.doctor.findings import Finding
from bestiary.core.home import VARIABLE, Home, existing_parent, free_space, gib


def home() -> Iterator[Finding]:
    """The cache folder and its disk."""
    cache = Home()
    entries = cache.entries()
    size = sum(entry.size for entry in entries)
    state = f"{len(entries)} entries, {gib(size)}" if cache.root.exists() else "not made yet"
    yield Finding(VARIABLE, f"{cache.root}: {state}")
    existing = existing_parent(cache.root)
    yield Finding("disk", f"{gib(free_space(existing))} free")
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        yield Finding(VARIABLE, "can't be written to: set it to a folder that you may write to", "warning")
    if unfinished := [entry.name for entry in entries if not entry.complete]:
        text = f"{len(unfinished)} unfinished entries, such as {unfinished[0]}: bestiary cache rm removes them"
        yield Finding(VARIABLE, text, "note")
