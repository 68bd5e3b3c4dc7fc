"""Fusions: where the program contains a fused op's reference, written in ops, the fused op takes its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from bestiary.core.errors import PluginError
from bestiary.core.ops import elementwise
from bestiary.core.ops.declare import OpDeclaration
from bestiary.core.program.program import Instruction, Program, Result, Value, substitute

_COMMUTATIVE = (elementwise.add, elementwise.mul)


@dataclass(frozen=True)
class _Wildcard:
    """A parameter of the fused op: stands for any value or constant, the same wherever it occurs."""

    index: int


@dataclass(frozen=True)
class _Made:
    """A result of an earlier op of the pattern."""

    op: int
    result: int


@dataclass(frozen=True)
class Pattern:
    """The ops of a fused op's reference in order, and which of their results it returns."""

    fused: OpDeclaration[..., Any]
    ops: tuple[tuple[OpDeclaration[..., Any], tuple[Any, ...]], ...]
    returned: tuple[_Made, ...]


Match = tuple[dict[int, Any], dict[int, Instruction]]  # wildcard → argument; op of the pattern → instruction


def pattern_of(fused: OpDeclaration[..., Any]) -> Pattern:
    """Trace a fused op's reference.

    Raises:
        PluginError: the reference does more than call ops on its parameters.
    """
    graph = fx.Graph()
    ops: list[tuple[OpDeclaration[..., Any], tuple[Any, ...]]] = []
    known: dict[fx.Node, Any] = {}
    tracer = fx.proxy.GraphAppendingTracer(graph)
    parameters = [fx.Proxy(graph.placeholder(name), tracer) for name in fused.parameters]
    returned = fused.reference(*parameters)
    for index, proxy in enumerate(parameters):
        known[proxy.node] = _Wildcard(index)

    def convert(argument: Any) -> Any:
        return fx.node.map_arg(argument, lambda node: known[node])

    for node in graph.nodes:
        if isinstance(node.target, OpDeclaration):
            known[node] = _Made(len(ops), 0)
            ops.append((node.target, convert(node.args)))
        elif node.op == "call_function" and node.name.startswith("getitem"):
            known[node] = _Made(known[node.args[0]].op, node.args[1])
        elif node.op != "placeholder":
            raise PluginError("E-FUSION-PATTERN", fused.name, f"its reference does more than call ops: {node}")
    results = returned if isinstance(returned, tuple) else (returned,)
    return Pattern(fused, tuple(ops), tuple(known[proxy.node] for proxy in results if proxy is not None))


def fuse(program: Program, pattern: Pattern, wanted: Callable[[tuple[Any, ...]], bool] = lambda args: True) -> int:
    """Replace every occurrence and return how many there were.

    Args:
        wanted: is asked with the fused op's arguments; says no where no kernel could run it.
    """
    count = 0
    for anchor in list(program.instructions):
        if anchor.target is pattern.ops[-1][0] and anchor in program.instructions:
            for binding, matched in _matches(program, pattern, anchor):
                args = tuple(binding.get(index) for index in range(len(pattern.fused.parameters)))
                if _replaceable(program, pattern, matched) and wanted(args):
                    _replace(program, pattern, args, matched)
                    count += 1
                    break
    return count


def _matches(program: Program, pattern: Pattern, anchor: Instruction) -> Iterator[Match]:
    producers = program.producers()
    before = program.instructions[: program.instructions.index(anchor)]

    def candidates(index: int, matched: dict[int, Instruction]) -> Sequence[Instruction]:
        if index == len(pattern.ops) - 1:
            return [anchor]
        for later, instruction in matched.items():
            for wants, argument in zip(pattern.ops[later][1], instruction.args, strict=True):
                if isinstance(wants, _Made) and wants.op == index:
                    return [producers[argument]] if argument in producers else []
            if pattern.ops[later][0] in _COMMUTATIVE and any(
                isinstance(wants, _Made) and wants.op == index for wants in pattern.ops[later][1]
            ):
                return [producers[argument] for argument in instruction.args if argument in producers]
        # Not connected to the anchor but through its arguments: look back within the module, nearest first.
        return [i for i in reversed(before) if i.scope == anchor.scope]

    def search(index: int, binding: dict[int, Any], matched: dict[int, Instruction]) -> Iterator[Match]:
        if index < 0:
            yield binding, matched
            return
        target, wants = pattern.ops[index]
        for instruction in candidates(index, matched):
            if instruction.target is not target or instruction in matched.values():
                continue
            orders = [instruction.args]
            if target in _COMMUTATIVE:
                orders.append(instruction.args[::-1])
            for args in orders:
                bound = _unify(wants, args, binding, matched)
                if bound is not None:
                    yield from search(index - 1, bound, {**matched, index: instruction})

    for binding, matched in search(len(pattern.ops) - 1, {}, {}):
        if all(_agrees(pattern, binding, matched, index) for index in matched):
            yield binding, matched


def _unify(
    wants: tuple[Any, ...], args: tuple[Any, ...], binding: dict[int, Any], matched: dict[int, Instruction]
) -> dict[int, Any] | None:
    bound = dict(binding)
    for want, argument in zip(wants, args, strict=True):
        if isinstance(want, _Wildcard):
            if want.index in bound and not _same(bound[want.index], argument):
                return None
            bound[want.index] = argument
        elif isinstance(want, _Made):
            if want.op in matched and matched[want.op].results[want.result] is not argument:
                return None
        elif not _same(want, argument):
            return None
    return bound


def _agrees(pattern: Pattern, binding: dict[int, Any], matched: dict[int, Instruction], index: int) -> bool:
    """Every argument of a matched instruction is what the pattern says, now that all of it is matched."""
    target, wants = pattern.ops[index]
    args = matched[index].args
    orders = [args, args[::-1]] if target in _COMMUTATIVE else [args]
    return any(_unify(wants, order, binding, matched) == binding for order in orders)


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, Value) or isinstance(right, Value):
        return left is right
    return type(left) is type(right) and bool(left == right)


def _replaceable(program: Program, pattern: Pattern, matched: dict[int, Instruction]) -> bool:
    """Nothing outside reads what disappears, or reads what moves before it is made."""
    place = max(program.instructions.index(instruction) for instruction in matched.values())
    returned = {matched[made.op].results[made.result] for made in pattern.returned}
    inside = set(matched.values())
    outputs = set(program.outputs.values())
    users = program.users()
    for instruction in inside:
        for result in instruction.results:
            outside = [user for user in users.get(result, []) if user not in inside]
            if result not in returned and (outside or result in outputs):
                return False
            if any(program.instructions.index(user) < place for user in outside):
                return False
        mutates = isinstance(instruction.target, OpDeclaration) and instruction.target.mutates
        if mutates and program.instructions.index(instruction) != place:
            return False
    return True


def _replace(program: Program, pattern: Pattern, args: tuple[Any, ...], matched: dict[int, Instruction]) -> None:
    place = max(matched.values(), key=program.instructions.index)
    results = tuple(matched[made.op].results[made.result] for made in pattern.returned)
    fused = Instruction(pattern.fused, args, results, place.scope)
    inside = set(matched.values())
    _remember(program, fused, inside)
    program.instructions = [
        fused if instruction is place else instruction
        for instruction in program.instructions
        if instruction is place or instruction not in inside
    ]


def _remember(program: Program, fused: Instruction, inside: set[Instruction]) -> None:
    """Keep what goes as calls that could be made beside the fused one. What that one returns they make once more, for
    themselves: they don't depend on when it runs."""
    program.swallowed = {old: fused if by in inside else by for old, by in program.swallowed.items()}
    twins: dict[Value, Result] = {result: Result(result.name) for result in fused.results}
    for instruction in inside:
        assert isinstance(instruction.target, OpDeclaration)
        if instruction.results and not instruction.target.mutates:
            args = instruction.args
            for result, twin in twins.items():
                args = tuple(substitute(argument, result, twin) for argument in args)
            results = tuple(twins.get(result, result) for result in instruction.results)
            program.swallowed[Instruction(instruction.target, args, results, instruction.scope)] = fused
