"""Products that read the same input become one: q, k and v, gate and up. Their results are column slices of it."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch

from bestiary.core.ops.linear import linear
from bestiary.core.program.program import Instruction, Program, Result, TorchCall, Value, Weight


def merge_linears(program: Program, form: Callable[[Weight], Hashable | None] = lambda weight: "") -> int:
    """Merge in place and return how many products went away.

    Args:
        form: what weights that are stacked must have in common; None for one that stays alone.
    """
    groups: dict[tuple[Value, bool, str, Hashable], list[Instruction]] = {}
    for instruction in program.instructions:
        if instruction.target is linear:
            x, weight, bias = instruction.args
            common = form(weight) if isinstance(weight, Weight) else None
            if common is None:
                continue
            # The scope's parent keeps apart what merely happens to read the same tensor far away.
            parent = instruction.scope.rpartition(".")[0]
            groups.setdefault((x, bias is None, parent, common), []).append(instruction)
    replaced: dict[Instruction, list[Instruction]] = {}
    for members in groups.values():
        if len(members) > 1:
            _merge(members, replaced)
    program.instructions = [new for old in program.instructions for new in replaced.get(old, [old])]
    return sum(not instructions for instructions in replaced.values())


def _merge(members: list[Instruction], replaced: dict[Instruction, list[Instruction]]) -> None:
    x, _, bias = members[0].args
    weight = _stack([member.args[1] for member in members])
    wide = Result("+".join(member.results[0].name for member in members))
    biases = None if bias is None else _stack([member.args[2] for member in members])
    first = Instruction(linear, (x, weight, biases), (wide,), members[0].scope)
    start, slices = 0, []
    for member in members:
        size = member.args[1].shape[0]
        slices.append(Instruction(TorchCall(torch.narrow), (wide, -1, start, size), member.results, member.scope))
        start += size
    replaced[members[0]] = [first, *slices]
    for member in members[1:]:
        replaced[member] = []


def _stack(weights: list[Weight]) -> Weight:
    return Weight("+".join(weight.name for weight in weights), tuple(part for w in weights for part in w.parts))
