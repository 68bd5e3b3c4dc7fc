"""Names of a program's tensors: what modules take and return, and what ops make in them.

``layers.3.attention`` or ``layers.3.attention.output`` is what the module returns, ``layers.3.attention.input`` the first
tensor it is given, ``layers.3.attention.rope.1`` the second result of the op ``rope`` called in that module's own forward
(``layers.3.attention.paged_attention`` where there is one). A module that is never called, its weights read by an op elsewhere,
gives its name to what that op makes: ``layers.3.moe.router``.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping

from bestiary.core.errors import UsageError
from bestiary.core.ops.declare import OpDeclaration
from bestiary.core.program.program import Instruction, Program, Result, Value, Weight


def name_places(program: Program, returned: Mapping[str, Value], given: Mapping[str, Value]) -> dict[str, Value]:
    """All names of a freshly traced program, in the order in which the tensors are made; several may name one tensor.

    Args:
        returned, given: by module path what its forward returned and what it was given first.
    """
    found = _made_by_ops(program.instructions)
    found |= {f"{path}.input": value for path, value in given.items()}
    found |= {path: value for path, value in _made_of(program.instructions).items() if path not in returned}
    found |= {path: value for path, value in returned.items() if path}  # a module's own name stands above an op's
    order: dict[Value, int] = {result: number for number, i in enumerate(program.instructions) for result in i.results}
    kept = [name for name, value in found.items() if value in order]
    return {name: found[name] for name in sorted(kept, key=lambda name: order[found[name]])}


def place(program: Program, name: str) -> Value:
    """The tensor of a name.

    Raises:
        UsageError: there is none, with names that are near.
    """
    found = program.places.get(name) or program.places.get(name.removesuffix(".output"))
    if found is None:
        near = difflib.get_close_matches(name, program.places, n=3)
        raise UsageError(
            "E-TAP-NAME",
            name,
            "no tensor of the model has this name",
            hint=f"near it: {', '.join(near)}" if near else "names look like layers.0.attention",
        )
    return found


def _made_of(instructions: list[Instruction]) -> dict[str, Value]:
    """By module, what the one op makes that reads the weights of this module and of no other."""
    made: dict[str, list[Value]] = {}
    for instruction in instructions:
        weights = [value for value in instruction.values() if isinstance(value, Weight)]
        modules = {part.parameter.rpartition(".")[0] for weight in weights for part in weight.parts}
        if len(modules) == 1 and len(instruction.results) == 1:
            made.setdefault(modules.pop(), []).append(instruction.results[0])
    return {path: values[0] for path, values in made.items() if len(values) == 1}


def _made_by_ops(instructions: list[Instruction]) -> dict[str, Value]:
    made: dict[str, list[Result]] = {}
    for instruction in instructions:
        if isinstance(instruction.target, OpDeclaration) and instruction.scope:
            made.setdefault(f"{instruction.scope}.{instruction.target.name}", []).extend(instruction.results)
    counts = Counter({name: len(results) for name, results in made.items()})
    return {
        name if counts[name] == 1 else f"{name}.{number}": result
        for name, results in made.items()
        for number, result in enumerate(results)
    }
