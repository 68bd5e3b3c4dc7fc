"""Taps: keep named tensors, as further outputs."""

from __future__ import annotations

from collections.abc import Sequence

from bestiary.core.program.places import place
from bestiary.core.program.program import Program


def insert_taps(program: Program, names: Sequence[str]) -> None:
    """Add tensors to the program's outputs, under their names. To be called before fusing.

    A tap is a reader like any other, so a fusion that would swallow the tensor is not applied there.

    Raises:
        UsageError: no tensor has that name.
    """
    for name in names:
        program.outputs[name] = place(program, name)
