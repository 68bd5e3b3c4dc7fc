"""Buffer assignment: results that are never alive at the same time share memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bestiary.core.program.program import Program, Result, Value
from bestiary.core.program.shapes import Dim, Shape, Sizes

_ALIGNMENT = 64  # bytes: a cache line, and enough for any vector load


@dataclass
class BufferPlan:
    """Which buffer each result that owns memory lives in; several results may, one after the other."""

    place: dict[Value, int] = field(default_factory=dict)
    count: int = 0


def assign(program: Program, shapes: Mapping[Value, Shape]) -> BufferPlan:
    """Walk the program once, taking a free buffer of the same growth for each result and freeing it after its last use."""
    last = _last_uses(program, shapes)
    plan, free = BufferPlan(), dict[tuple[Dim, ...], list[int]]()
    growth: dict[int, tuple[Dim, ...]] = {}
    for index, instruction in enumerate(program.instructions):
        for result in instruction.results:
            if shapes[result].base is None:
                kind = _growth(shapes[result])
                available = free.setdefault(kind, [])
                if available:
                    plan.place[result] = available.pop()
                else:
                    plan.place[result] = plan.count
                    growth[plan.count] = kind
                    plan.count += 1
        for value in last.get(index, ()):
            free[growth[plan.place[value]]].append(plan.place[value])
    return plan


def needed(plan: BufferPlan, shapes: Mapping[Value, Shape], sizes: Sizes) -> list[int]:
    """Bytes of each buffer at these sizes; they grow with every one of the three, so those of the largest step bound all."""
    need = [0] * plan.count
    for value, place in plan.place.items():
        need[place] = max(need[place], _bytes(shapes[value], sizes))
    return need


class Arena:
    """The buffers' memory. It grows to what the largest step so far has needed."""

    def __init__(self, plan: BufferPlan, shapes: Mapping[Value, Shape], device: torch.device) -> None:
        self._plan, self._shapes, self._device = plan, shapes, device
        self._memory = [torch.empty(0, dtype=torch.uint8, device=device)] * plan.count

    def reserve(self, sizes: Sizes) -> bool:
        """Make room for a step of these sizes; True if memory moved, so that views taken before are stale."""
        moved = False
        for place, size in enumerate(needed(self._plan, self._shapes, sizes)):
            if size > self._memory[place].numel():
                self._memory[place] = torch.empty(size, dtype=torch.uint8, device=self._device)
                moved = True
        return moved

    @property
    def nbytes(self) -> int:
        """What the buffers take now."""
        return sum(memory.nbytes for memory in self._memory)

    def view(self, value: Value, sizes: Sizes) -> Tensor:
        """The result's tensor at these sizes."""
        shape = self._shapes[value]
        size = math.prod(shape.at(sizes)) * shape.dtype.itemsize
        return self._memory[self._plan.place[value]][:size].view(shape.dtype).view(shape.at(sizes))


def _bytes(shape: Shape, sizes: Sizes) -> int:
    size = math.prod(shape.at(sizes)) * shape.dtype.itemsize
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _growth(shape: Shape) -> tuple[Dim, ...]:
    """What must agree for two results to share a buffer: how their bytes grow, not how they are arranged."""
    varying = tuple(dim for dim in shape.dims if dim.tokens or dim.sequences or dim.rows)
    fixed = math.prod(dim.constant for dim in shape.dims if dim not in varying) * shape.dtype.itemsize
    return (*varying, Dim(fixed))


def _last_uses(program: Program, shapes: Mapping[Value, Shape]) -> dict[int, list[Value]]:
    """After which instruction each buffer is free: views count for the value they are a view of."""
    last: dict[Value, int] = {}
    for index, instruction in enumerate(program.instructions):
        for value in (*instruction.values(), *instruction.results):
            owner = shapes[value].base or value if value in shapes else value
            if isinstance(owner, Result):
                last[owner] = index
    kept = {shapes[value].base or value for value in program.outputs.values()}
    uses: dict[int, list[Value]] = {}
    for value, index in last.items():
        if value not in kept:
            uses.setdefault(index, []).append(value)
    return uses
