"""Taps: keep named tensors, as further outputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from bestiary.core.program.places import place
from bestiary.core.program.program import Instruction, Program, Result, Value


def insert_taps(program: Program, names: Sequence[str]) -> None:
    """Add tensors to the program's outputs, under their names. To be called before fusing.

    A tap is a reader like any other, so a fusion that would swallow the tensor is not applied there.

    Raises:
        UsageError: no tensor has that name.
    """
    for name in names:
        program.outputs[name] = place(program, name)


def tapped(program: Program, names: Iterable[str]) -> Program:
    """A program that keeps tensors as further outputs, under their names, after all passes. Its own calls are the same and
    compute the same: what a fusion swallowed is made beside the fused call, by the calls that were there before.

    Raises:
        UsageError: no tensor has that name.
    """
    outputs = {name: place(program, name) for name in names}
    made = {result for instruction in program.instructions for result in instruction.results}
    makers = {result: i for i in program.swallowed for result in i.results if result not in made}
    beside: dict[Instruction, list[Instruction]] = {}

    def make(value: Value) -> None:
        maker = makers.get(value) if isinstance(value, Result) else None
        if maker is None:
            return
        calls = beside.setdefault(program.swallowed[maker], [])
        if maker not in calls:
            for read in maker.values():
                make(read)
            calls.append(maker)

    for value in outputs.values():
        make(value)
    instructions = [call for i in program.instructions for call in (*beside.get(i, ()), i)]
    return replace(program, instructions=instructions, outputs={**program.outputs, **outputs})
