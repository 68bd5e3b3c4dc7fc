"""Which weights read the same value, and what before them can take up a scale of it: found on the traced program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from bestiary.core.ops import activation, attention, elementwise, linear, moe, norm
from bestiary.core.ops.declare import OpDeclaration
from bestiary.core.program.program import Input, Instruction, Program, Result, TorchCall, Value, Weight

_READS = (linear.linear, linear.logits)  # x, weight, …
# They move features, or rows, and leave their order: a scale of a feature goes through.
_MOVES = (Tensor.flatten, Tensor.unflatten, Tensor.view, Tensor.reshape)


class Source(NamedTuple):
    """A parameter that makes a value x ``[*, K]``: divided by s ``[K]``, it makes x / s.

    Args:
        weight: a norm's ``[K]``, or a matrix ``[K, *]`` (experts: ``[E, K, *]``, and s is ``[E, K]``).
        bias: ``[K]``, to be divided too; None: there is none.
        axis: of the weight, on which x's features are: −1 or −2.
    """

    weight: str
    bias: str | None
    axis: int


class Shared(NamedTuple):
    """Weights that read the very same value, on their last axis.

    Args:
        readers: names of parameters.
        source: None where nothing can take up a scale: somebody else reads the value too, or one of the parameters has
            another use.
    """

    readers: tuple[str, ...]
    source: Source | None


def shared(program: Program, layer: Sequence[Instruction]) -> tuple[Shared, ...]:
    """The groups of a layer's weights, in the order of execution; sources lie in the same layer."""
    finder = _Finder(program, layer)
    reads: dict[Value, list[str]] = {}
    groups: list[tuple[list[str], Value | Instruction]] = []
    for instruction in layer:
        for value, weights in _read(instruction):
            if value not in reads:
                reads[value] = []
                groups.append((reads[value], value))
            reads[value] += [weight.parts[0].parameter for weight in weights]
        if (between := _between(instruction)) is not None:
            groups.append(([between.parts[0].parameter], instruction))
    return tuple(
        Shared(
            tuple(dict.fromkeys(names)),
            finder.of_value(made, names) if isinstance(made, Value) else finder.of_experts(made),
        )
        for names, made in groups
    )


def _read(instruction: Instruction) -> list[tuple[Value, tuple[Weight, ...]]]:
    """A value that a call's weights read on their last axis, and those."""
    args = instruction.args
    if instruction.target in _READS and isinstance(args[1], Weight):
        return [(args[0], (args[1],))]
    if _between(instruction) is not None:
        return [(args[0], (args[3], args[4]))]
    return []


def _between(instruction: Instruction) -> Weight | None:
    """Of a mixture of experts the weight that reads what the others make, within the call."""
    if instruction.target is moe.moe and all(isinstance(value, Weight) for value in instruction.args[3:6]):
        down: Weight = instruction.args[5]
        return down
    return None


class _Finder:
    def __init__(self, program: Program, layer: Sequence[Instruction]) -> None:
        self._program, self._users = program, program.users()
        self._makers = {result: instruction for instruction in layer for result in instruction.results}

    def of_value(self, value: Value, readers: Sequence[str]) -> Source | None:
        """What can take up a scale of a value that these weights read."""
        users = self._users[value]
        if any(not any(found is value for found, _ in _read(user)) for user in users):
            return None
        if len(set(readers)) < len(readers) or not all(self._used_once(name) for name in readers):
            return None
        maker = self._back(value)
        if maker is None:
            return None
        if maker.target is norm.rms_norm:
            weight = maker.args[1]
            return self._source(weight, None, -1)
        if maker.target is activation.gated_activation:
            return self._rows(maker.args[1])
        if maker.target is attention.paged_attention:
            return self._values(maker, value)
        return None

    def of_experts(self, instruction: Instruction) -> Source | None:
        """Of what an expert's last weight reads: the rows of up."""
        return self._source(instruction.args[4], None, -2) if self._used_once(_name(instruction.args[5])) else None

    def _values(self, instruction: Instruction, read: Value) -> Source | None:
        """The product that made the values, where each head has its own: what attention makes is their mean."""
        cache = instruction.args[2]
        if not isinstance(cache, Input):
            return None
        spec = self._program.caches[cache.name.partition(".")[2]]
        writes = [user for user in self._users[cache] if user is not instruction]
        if len(writes) != 1 or writes[0].target is not attention.kv_write:
            return None
        source = self._rows(writes[0].args[1])
        readers = [weight for user in self._users[read] for _, weights in _read(user) for weight in weights]
        each = spec.kv_heads * spec.v_size
        return source if all(weight.shape[-1] == each for weight in readers) else None

    def _rows(self, value: Any) -> Source | None:
        """The product that makes a value which only one call reads."""
        maker = self._back(value) if isinstance(value, Value) and len(self._users[value]) == 1 else None
        if maker is None or maker.target is not linear.linear:
            return None
        return self._source(maker.args[1], maker.args[2], -2)

    def _source(self, weight: Any, bias: Any, axis: int) -> Source | None:
        if not isinstance(weight, Weight) or not self._used_once(_name(weight)):
            return None
        if bias is None:
            return Source(_name(weight), None, axis)
        if isinstance(bias, Weight) and self._used_once(_name(bias)):
            return Source(_name(weight), _name(bias), axis)
        return None

    def _back(self, value: Value) -> Instruction | None:
        """Who makes a value, past what only moves it and has no other reader."""
        maker = self._makers.get(value) if isinstance(value, Result) else None
        while maker is not None and _moves(maker):
            before = maker.args[0]
            alone = isinstance(before, Result) and len(self._users[before]) == 1
            maker = self._makers.get(before) if alone else None
        return maker

    def _used_once(self, parameter: str) -> bool:
        weights = [weight for weight in self._program.weights() if _name(weight) == parameter]
        return sum(len(self._users[weight]) for weight in weights) == 1


def _moves(instruction: Instruction) -> bool:
    target = instruction.target
    if isinstance(target, TorchCall):
        return target.function in _MOVES
    return isinstance(target, OpDeclaration) and target is elementwise.select_rows


def _name(weight: Weight) -> str:
    return weight.parts[0].parameter
