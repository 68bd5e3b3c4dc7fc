"""Which classes transformers has, from its files: importing it takes seconds."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

_LIST = Path("models", "auto", "modeling_auto.py")


def lacking(architecture: str) -> str | None:
    """The transformers that does not list a class, by name and version; None where it does, or nobody can tell."""
    found, listed = _listed()
    return None if found is None or re.search(rf"[\"']{re.escape(architecture)}[\"']", listed) else found


def model_type_of(architecture: str, said: object) -> tuple[str | None, str | None]:
    """The transformers that is installed, by name and version, and the ``model_type`` that it lists a class under.

    Args:
        said: the ``model_type`` of config.json, which counts where the class is listed under several.
    """
    found, listed = _listed()
    types = re.findall(rf"[\"']([\w-]+)[\"'],\s*[\"']{re.escape(architecture)}[\"']", listed)
    return found, str(said) if said in types else next(iter(types), None)


def _listed() -> tuple[str | None, str]:
    spec = find_spec("transformers")
    folders = spec.submodule_search_locations if spec is not None else None
    try:
        listed = Path(next(iter(folders or ())), _LIST).read_text(encoding="utf-8")
        return f"transformers {version('transformers')}", listed
    except (StopIteration, OSError, PackageNotFoundError):
        return None, ""
