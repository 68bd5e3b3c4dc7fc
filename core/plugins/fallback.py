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


def knows_it(model_type: str | None) -> bool:
    """Whether transformers, where it is installed, has models of this type; found without importing it."""
    found = find_spec("transformers")
    if found is None or found.origin is None or not re.fullmatch(r"\w{1,40}", model_type or ""):
        return False
    return Path(found.origin).with_name("models").joinpath(str(model_type)).is_dir()
