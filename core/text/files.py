"""The small JSON files beside a model, through the reader that all foreign JSON goes through; texts that a person names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from bestiary.core.checkpoint.files import CONFIG_LIMIT
from bestiary.core.checkpoint.files import read_json as read
from bestiary.core.errors import DataError, MissingInputError


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is no file.

    Raises:
        DataError: not a JSON object, not UTF-8, too large, or not a regular file.
    """
    return read(path.parent, path.name, limit=CONFIG_LIMIT) if os.path.lexists(path) else {}


def read_text(path: Path) -> str:
    """A text file in UTF-8.

    Raises:
        MissingInputError: it can't be read.
        DataError: it is no UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise MissingInputError("E-TEXT-MISSING", path.name or str(path), f"can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        found = f"byte 0x{error.object[error.start]:02x} at {error.start}"
        raise DataError("E-TEXT-ENCODING", path.name, "is not a text", found=found, expected="UTF-8") from error
