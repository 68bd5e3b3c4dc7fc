"""Quantized weights: where an op reads one, what its method makes of the call, written in ops, takes the call's place."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import fx

from bestiary.core.errors import PluginError
from bestiary.core.ops.declare import OpDeclaration
from bestiary.core.ops.linear import linear
from bestiary.core.program.program import Instruction, Part, Program, Result, Value, Weight
from bestiary.core.quant.layout import Piece, Shape, Stored, stackable
from bestiary.core.quant.method import Method, layout_of
from bestiary.core.quant.tensors import stored_name


class Quantizer:
    """The pass, for one program.

    Args:
        methods: by parameter.
        shapes: of the model's parameters, whole.
        dtype: that the engine computes in.
        device: ``"cpu"`` or ``"cuda"``: on some, some methods only store.
    """

    def __init__(
        self, methods: Mapping[str, Method], shapes: Mapping[str, Shape], dtype: torch.dtype, device: str
    ) -> None:
        self._methods = {name: method for name, method in methods.items() if not method.storage_only(device)}
        self._shapes, self._dtype = shapes, str(dtype).removeprefix("torch.")

    def form(self, weight: Weight) -> Hashable | None:
        """What stacked weights have in common: the method of each; None where nothing can be stacked below the weight."""
        (part,) = weight.parts
        method = self._methods.get(part.parameter)
        if method is None:
            return ""
        cut, _ = self._cut(method, part)
        layout, rows = self._layout(method, part.parameter), part.shape[0]
        return (cut, part.shape[1:]) if stackable(layout, rows) and cut.stacks(rows) else None

    def run(self, program: Program) -> int:
        """Rewrite the program in place; how many calls read quantized weights."""
        made: dict[Weight, Result] = {}
        rewritten: list[Instruction] = []
        count = 0
        for instruction in program.instructions:
            quantized = [v for v in dict.fromkeys(instruction.values()) if isinstance(v, Weight) and self._is(v)]
            if not quantized:
                rewritten.append(instruction)
                continue
            count += 1
            if instruction.target is linear and quantized == [instruction.args[1]]:
                rewritten += self._linear(instruction, quantized[0])
                continue
            for weight in quantized:
                if weight not in made:
                    restoring, made[weight] = self._weight(weight, instruction.scope)
                    rewritten += restoring
                instruction.args = tuple(_replaced(argument, weight, made[weight]) for argument in instruction.args)
            rewritten.append(instruction)
        program.instructions = rewritten
        return count

    def _is(self, weight: Weight) -> bool:
        return weight.parts[0].parameter in self._methods

    def _linear(self, instruction: Instruction, weight: Weight) -> list[Instruction]:
        x, _, bias = instruction.args
        method, stored = self._stored(weight)
        return _spliced(
            lambda given: method.linear(given["x"], _tensors(given), weight.shape, given.get("bias"), self._dtype),
            {"x": x, **({} if bias is None else {"bias": bias}), **_prefixed(stored)},
            instruction.results,
            instruction.scope,
            method,
        )

    def _weight(self, weight: Weight, scope: str) -> tuple[list[Instruction], Result]:
        method, stored = self._stored(weight)
        result = Result(f"{weight.name}.restored")
        instructions = _spliced(
            lambda given: method.weight(_tensors(given), weight.shape, self._dtype),
            _prefixed(stored), (result,), scope, method,
        )  # fmt: skip
        return instructions, result

    def _stored(self, weight: Weight) -> tuple[Method, dict[str, Weight]]:
        """The method of a weight whose parts have one, and its stored tensors, each stacked of the parts'."""
        parts: dict[str, list[Part]] = {}
        cut: Method | None = None
        for part in weight.parts:
            cut, pieces = self._cut(self._methods[part.parameter], part)
            for name, one in pieces.items():
                parts.setdefault(name, []).append(one)
        assert cut is not None
        return cut, {name: Weight(stored_name(weight.name, name), tuple(found)) for name, found in parts.items()}

    def _cut(self, method: Method, part: Part) -> tuple[Method, dict[str, Part]]:
        """A slice of a quantized parameter: its method, and the slices of its stored tensors."""
        whole = self._shapes[part.parameter]
        layout = self._layout(method, part.parameter)
        pieces: dict[str, Piece] = {}
        if part.axis is not None:
            method, pieces = method.cut(whole, part.axis, part.start, part.stop, part.parameter)
        found = {}
        for name, one in layout.items():
            parameter, piece = stored_name(part.parameter, name), pieces.get(name)
            shape = one.shape(whole)
            if piece is None:
                found[name] = Part(parameter, shape, dtype=one.dtype)
                continue
            size = piece.stop - piece.start
            shape = tuple(size if axis == piece.axis else length for axis, length in enumerate(shape))
            found[name] = Part(parameter, shape, piece.axis, piece.start, piece.stop, piece.repeat, one.dtype)
        return method, found

    def _layout(self, method: Method, parameter: str) -> Mapping[str, Stored]:
        return layout_of(method, self._shapes[parameter], parameter)


def _prefixed(stored: Mapping[str, Weight]) -> dict[str, Value]:
    return {f"stored.{name}": weight for name, weight in stored.items()}


def _tensors(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("stored."): proxy for name, proxy in given.items() if name.startswith("stored.")}


def _replaced(argument: Any, old: Value, new: Value) -> Any:
    if isinstance(argument, list | tuple):
        return type(argument)(_replaced(one, old, new) for one in argument)
    return new if argument is old else argument


def _spliced(
    write: Any, given: Mapping[str, Value], results: tuple[Result, ...], scope: str, method: Method
) -> list[Instruction]:
    """The ops that ``write`` calls on proxies of ``given``, as instructions; the last makes ``results``.

    Raises:
        PluginError: the method does more than call ops.
    """
    graph = fx.Graph()
    tracer = fx.proxy.GraphAppendingTracer(graph)
    proxies = {name: fx.Proxy(graph.placeholder(name.replace(".", "_")), tracer) for name in given}
    values: dict[fx.Node, Any] = {proxies[name].node: value for name, value in given.items()}
    returned = write(proxies)
    instructions: list[Instruction] = []
    for node in graph.nodes:
        if node.op == "placeholder":
            continue
        if isinstance(node.target, OpDeclaration):
            args = fx.node.map_arg(node.args, lambda argument: values[argument])
            made = tuple(Result(f"{results[0].name}.{node.name}.{number}") for number in range(node.target.results))
            instructions.append(Instruction(node.target, args, made, scope))
            values[node] = made[0] if len(made) == 1 else made
        elif node.op == "call_function" and node.name.startswith("getitem"):
            values[node] = values[node.args[0]][node.args[1]]
        else:
            raise _not_ops(method, f"it calls {node.target}")
    last = instructions[-1] if instructions else None
    if (
        last is None
        or not isinstance(returned, fx.Proxy)
        or values[returned.node] is not last.results[0]
        or len(last.results) != 1
    ):
        raise _not_ops(method, "it does not return what its last op makes")
    last.results = results
    return instructions


def _not_ops(method: Method, what: str) -> PluginError:
    return PluginError(
        "E-QUANT-METHOD", f"quantization method {type(method).__module__}.{type(method).__qualname__}", f"is not written in ops: {what}",
        expected="calls of bestiary.ops, the last of which makes the result",
    )  # fmt: skip
