"""Every kind of document that ``--json`` prints and others may rely on. ``docs/schemas`` has the JSON Schema of each."""

from __future__ import annotations

from bestiary.core.plugins.resolve import resolve
from bestiary.core.reports.schema import JsonReport

#: Where their classes are.
KINDS: tuple[str, ...] = ("bestiary.core.diff.report:DiffReport",)


def kinds() -> list[type[JsonReport]]:
    """The classes."""
    return [resolve(place, needed_by="docs/schemas") for place in KINDS]
