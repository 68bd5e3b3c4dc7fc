"""Architectures that no plugin claims: whether a fallback model stands in, and how to get one."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from bestiary.core.plugins.resolve import resolve
from bestiary.spec import Model


def stands_in(fallback: Model, architecture: str, model_type: str | None) -> str | None:
    """None where the fallback can run the architecture, else why not."""
    assert fallback.fallback is not None
    ask = resolve(fallback.fallback, needed_by=f"model {fallback.name}")
    reason: str | None = ask(architecture, model_type)
    return reason


def causal_there(architecture: str, model_type: str | None) -> bool | None:
    """Whether transformers, where it is installed, might run an architecture; found without importing it.

    None where it has no models of this type, False where it has this one for other tasks than text that goes on.
    """
    found = find_spec("transformers")
    if found is None or found.origin is None or not re.fullmatch(r"[\w-]{1,40}", model_type or ""):
        return None
    path = Path(found.origin).with_name("models").joinpath("auto", "modeling_auto.py")
    listed = path.read_text(encoding="utf-8") if path.is_file() else ""
    if not re.search(rf"[\"']{model_type}[\"'],", listed):
        return None
    causal = listed.partition("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES = ")[2].partition("MAPPING_NAMES = ")[0]
    entry = rf"[\"']{model_type}[\"'],\s*[\"']{re.escape(architecture)}[\"']"
    return not causal or re.search(entry, causal) is not None or re.search(entry, listed) is None
