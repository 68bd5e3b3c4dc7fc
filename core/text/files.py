"""The small JSON files beside a model, through the reader that all foreign JSON goes through."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from bestiary.core.checkpoint.files import CONFIG_LIMIT
from bestiary.core.checkpoint.files import read_json as read


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is no file.

    Raises:
        DataError: not a JSON object, not UTF-8, too large, or not a regular file.
    """
    return read(path.parent, path.name, limit=CONFIG_LIMIT) if os.path.lexists(path) else {}
