"""Taps: keep what named modules return, as further outputs."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from bestiary.core.errors import UsageError
from bestiary.core.program.program import Program


def insert_taps(program: Program, modules: Sequence[str]) -> None:
    """Add the output of each module (``layers.3.attention``) to the program's outputs, under its path.

    A tap is a reader like any other, so a fusion that would swallow the value is not applied there.

    Raises:
        UsageError: no module of that path returns a tensor.
    """
    for path in modules:
        if path not in program.scopes:
            near = difflib.get_close_matches(path, program.scopes, n=3)
            raise UsageError(
                "E-TAP-NAME",
                path,
                "no module of this path returns a tensor",
                hint=f"near it: {', '.join(near)}" if near else "paths look like layers.0.attention",
            )
        program.outputs[path] = program.scopes[path]
