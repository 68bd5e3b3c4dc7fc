"""The small JSON files beside a model: read with a size limit, and refused in one sentence when damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from bestiary.core.errors import DataError

# Configs are a few kilobytes; what is larger is another file under this name.
MAX_CONFIG_BYTES: Final = 16 * 2**20


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is no file.

    Raises:
        DataError: not a JSON object, not UTF-8, or too large.
    """
    if not path.is_file():
        return {}
    size = path.stat().st_size
    if size > MAX_CONFIG_BYTES:
        raise DataError(
            "E-TEXT-SIZE", path.name, "too large", found=f"{size} bytes", expected=f"at most {MAX_CONFIG_BYTES}"
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError("E-TEXT-JSON", path.name, "not valid JSON", found=str(error)[:200]) from error
    if not isinstance(value, dict):
        raise DataError("E-TEXT-JSON", path.name, "not a JSON object", found=type(value).__name__, expected="an object")
    return value
