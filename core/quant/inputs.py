"""What calibration keeps of the values that weights read. R rows · K features · E experts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bestiary.core.ops import linear, moe
from bestiary.core.ops.activation import gated_activation
from bestiary.core.program.program import Instruction, Value, Weight
from bestiary.core.quant.kv_ranges import CacheRanges

_READS = (linear.linear, linear.logits)  # x, weight, …


def never(parameter: str) -> bool:
    """For no parameter."""
    return False


class Wants(NamedTuple):
    """What to keep besides magnitudes.

    Args:
        hessian: of which parameters the mean of x xᵀ is wanted: ``[K, K]`` fp32 each, an expert's its own.
        sample: most rows to keep of each input.
    """

    hessian: Callable[[str], bool] = never
    sample: int = 512


class Inputs(NamedTuple):
    """What was seen of the value that a matrix ``[N, K]`` reads; weights that read the same value have the same object.

    Args:
        rows: how many; 0 for an expert that no token chose, whose tensors are then zeros and an empty sample.
        mean: mean |x| ``[K]``.
        largest: max |x| ``[K]``.
        sample: rows at equal distances, between half of as many as were wanted and all of them, ``[≤ wanted, K]``.
        hessian: mean of x xᵀ ``[K, K]``; None where none of its readers' was wanted.
    """

    rows: int
    mean: Tensor
    largest: Tensor
    sample: Tensor
    hessian: Tensor | None


class Collector:
    """Sees the calls of one layer for all sequences, whose instructions these are.

    Attributes:
        caches: what is written to caches.
    """

    def __init__(self, layer: Sequence[Instruction], wants: Wants) -> None:
        self._wants = wants
        self._names = _first_readers(layer)
        self._seen: dict[tuple[Instruction, str, int], _Seen] = {}
        self._of: dict[str, list[_Seen]] = {}
        self.caches = CacheRanges()

    def __call__(self, instruction: Instruction, args: Sequence[Any]) -> None:
        """A call that is about to be made."""
        target = instruction.target
        if instruction in self._names:
            self._see(instruction, "", 0, self._names[instruction], args[0].flatten(0, -2))
        elif target is moe.moe and all(isinstance(value, Weight) for value in instruction.args[3:6]):
            self._see_experts(instruction, args)
        else:
            self.caches(instruction, args)

    def inputs(self) -> dict[str, tuple[Inputs, ...]]:
        """By parameter: of each of its matrices, one or E."""
        made = {id(seen): seen.inputs() for several in self._of.values() for seen in several}
        return {name: tuple(made[id(seen)] for seen in several) for name, several in self._of.items()}

    def _see(self, call: Instruction, place: str, expert: int, names: Sequence[str], x: Tensor) -> None:
        key = (call, place, expert)
        if key not in self._seen:
            hessian = any(self._wants.hessian(name) for name in names)
            self._seen[key] = _Seen(x.shape[-1], self._wants.sample, x.device, hessian=hessian)
            for name in names:
                self._of.setdefault(name, []).append(self._seen[key])
        self._seen[key].add(x)

    def _see_experts(self, instruction: Instruction, args: Sequence[Any]) -> None:
        x, _, experts, gate, up, _, kind = args
        first, second, last = (weight.parts[0].parameter for weight in instruction.args[3:6])
        for expert in range(gate.shape[0]):
            some = x[(experts == expert).any(-1)]
            self._see(instruction, "in", expert, (first, second), some)
            between = gated_activation.reference(F.linear(some, gate[expert]), F.linear(some, up[expert]), kind)
            self._see(instruction, "between", expert, (last,), between)


def _first_readers(layer: Sequence[Instruction]) -> dict[Instruction, tuple[str, ...]]:
    """Of each value that products with weights read, the first that does → the parameters of all."""
    first: dict[Value, Instruction] = {}
    names: dict[Instruction, list[str]] = {}
    for instruction in layer:
        if instruction.target in _READS and isinstance(instruction.args[1], Weight):
            call = first.setdefault(instruction.args[0], instruction)
            names.setdefault(call, []).append(instruction.args[1].parts[0].parameter)
    return {call: tuple(dict.fromkeys(several)) for call, several in names.items()}


class _Seen:
    """Sums over the rows of one value."""

    def __init__(self, features: int, sample: int, device: torch.device, *, hessian: bool) -> None:
        self._total = torch.zeros(features, dtype=torch.float64, device=device)
        self._largest = torch.zeros(features, device=device)
        self._hessian = torch.zeros(features, features, device=device) if hessian else None
        self._kept, self._limit = torch.empty(0, features, device=device), sample
        self._rows, self._stride = 0, 1

    def add(self, x: Tensor) -> None:
        """Rows ``[R, K]``."""
        if not len(x):
            return
        wide = x.float()
        size = wide.abs()
        self._total += size.sum(0)
        self._largest = torch.maximum(self._largest, size.amax(0))
        if self._hessian is not None:
            self._hessian.addmm_(wide.t(), wide)
        if self._limit:
            self._sample(wide)
        self._rows += len(x)

    def inputs(self) -> Inputs:
        rows = max(1, self._rows)
        hessian = None if self._hessian is None else self._hessian / rows
        return Inputs(self._rows, (self._total / rows).float(), self._largest, self._kept, hessian)

    def _sample(self, x: Tensor) -> None:
        """Keep each row whose number is a multiple of the stride, which doubles when there are too many."""
        self._kept = torch.cat((self._kept, x[-self._rows % self._stride :: self._stride]))
        while len(self._kept) > self._limit:
            self._kept = self._kept[::2].clone()
            self._stride *= 2
