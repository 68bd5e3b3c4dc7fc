"""Failures as the command line shows them: one sentence on stderr, an exit status, and JSON where that was asked for."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from bestiary.core.errors import INTERNAL, IO_FAILED, USAGE, BestiaryError, said
from bestiary.core.progress import bearing

INTERRUPTED = 130


def exit_status(error: BaseException) -> int:
    """The exit status for whatever ended a command."""
    if isinstance(error, BestiaryError):
        return error.exit_status
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if is_usage(error):
        return USAGE
    return IO_FAILED if isinstance(error, OSError) else INTERNAL


def is_usage(error: BaseException) -> bool:
    """Whether typer refused the arguments. Its exception classes moved between versions; what they do didn't."""
    return hasattr(error, "format_message") and hasattr(error, "exit_code")


def as_dict(error: BaseException) -> dict[str, Any]:
    """The failure for ``--json``, with the same keys whatever failed."""
    if isinstance(error, BestiaryError):
        parts: dict[str, Any] = error.as_dict()
    else:
        code = {USAGE: "E-CLI-USAGE", INTERRUPTED: "E-CLI-INTERRUPTED", IO_FAILED: "E-IO"}.get(
            exit_status(error), "E-INTERNAL"
        )
        parts = dict.fromkeys(("code", "subject", "problem", "found", "expected", "hint"))
        parts.update(code=code, subject="bestiary", problem=sentence(error))
    return {"error": {**parts, "message": sentence(error), "exit_status": exit_status(error)}}


def sentence(error: BaseException) -> str:
    """What happened, in one line."""
    if isinstance(error, BestiaryError):
        text = str(error)
    elif isinstance(error, KeyboardInterrupt):
        text = "interrupted"
    elif is_usage(error):
        text = f"{error.format_message().rstrip('.')} (see --help)"  # type: ignore[attr-defined]
    elif isinstance(error, OSError):
        name = f"{str(error.filename).rpartition('/')[2]}: " if error.filename else ""
        text = f"{name}{error.strerror or type(error).__name__}"
    else:
        text = f"internal error: {type(error).__name__}: {said(error)} (--debug shows the traceback)"
    return " ".join(text.split())


def show(error: BaseException, arguments: Sequence[str]) -> None:
    """Print the failure: the sentence, before it the traceback with ``--debug``, and JSON on stdout with ``--json``."""
    stderr = bearing(sys.stderr)
    if "--debug" in arguments:
        traceback.print_exception(error, file=stderr)
    print(f"bestiary: {sentence(error)}", file=stderr)
    if "--json" in arguments:
        print(json.dumps(as_dict(error)))
