"""Which classes transformers has, from its files: importing it takes seconds."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

_LIST = Path("models", "auto", "modeling_auto.py")


def lacking(architecture: str) -> str | None:
    """The transformers that does not list a class, by name and version; None where it does, or nobody can tell."""
    spec = find_spec("transformers")
    folders = spec.submodule_search_locations if spec is not None else None
    try:
        listed = Path(next(iter(folders or ())), _LIST).read_text(encoding="utf-8")
        found = f"transformers {version('transformers')}"
    except (StopIteration, OSError, PackageNotFoundError):
        return None
    return None if re.search(rf"[\"']{re.escape(architecture)}[\"']", listed) else found
