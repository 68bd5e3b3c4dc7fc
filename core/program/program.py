"""The step program: inputs, a flat list of instructions, outputs. Passes rewrite it; nothing in it knows a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from bestiary.core.ops.declare import OpDeclaration
from bestiary.layers.cache import CacheSpec


@dataclass(eq=False, slots=True)
class Value:
    """A tensor of the program, by identity."""

    name: str


@dataclass(eq=False, slots=True)
class Input(Value):
    """Given by the runtime at every step: ``tokens``, ``slots.0``, ``k.layers.0.attention.cache`` …"""


@dataclass(frozen=True, slots=True)
class Part:
    """A slice of a stored tensor: ``start … stop`` along ``axis`` (the whole of it without an axis).

    Args:
        parameter: a model's parameter, or one of the tensors that a quantized one is stored as.
        repeat: each element so many times along ``axis``, before it is sliced.
        dtype: what it is stored as, for a tensor of a quantized parameter; None: the engine's.
    """

    parameter: str
    shape: tuple[int, ...]
    axis: int | None = None
    start: int = 0
    stop: int = 0
    repeat: int = 1
    dtype: str | None = None


@dataclass(eq=False, slots=True)
class Weight(Value):
    """A constant: one or more parts stacked along axis 0."""

    parts: tuple[Part, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        if len(self.parts) == 1:
            return self.parts[0].shape  # () of a scalar, which nothing is stacked with
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    def dtype(self, default: torch.dtype) -> torch.dtype:
        """Its dtype in an engine that computes in ``default``."""
        stored = self.parts[0].dtype
        found: torch.dtype = default if stored is None else getattr(torch, stored)
        return found


@dataclass(eq=False, slots=True)
class Result(Value):
    """Made by an instruction."""


@dataclass(frozen=True)
class TorchCall:
    """A torch function or tensor method that a model used besides the ops; views of buffers are of this kind too."""

    function: Callable[..., Any]
    keywords: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        return f"torch.{getattr(self.function, '__name__', repr(self.function))}"


@dataclass(eq=False, slots=True)
class Instruction:
    """One call. ``scope`` is the path of the module whose forward made it."""

    target: OpDeclaration[..., Any] | TorchCall
    args: tuple[Any, ...]
    results: tuple[Result, ...]
    scope: str

    def values(self) -> Iterator[Value]:
        """The tensors it reads."""
        for argument in self.args:
            yield from values_in(argument)


@dataclass
class Program:
    """A traced model.

    Attributes:
        inputs: by name, in a fixed order.
        instructions: in the order of execution.
        outputs: ``logits`` and the taps, by name.
        places: names of tensors, in the order in which they are made; see :mod:`~bestiary.core.program.places`.
        swallowed: calls that fusions took up and that could still be made → the call that took them up. They read and make
            the program's own values, but for those that the fused call makes.
        caches: path of each cache that this program uses → what a rank stores of it.
        groups: the cache groups of the whole model as it declares them; the same for all ranks and stages.
        group_of: path of each cache of the whole model → the number of its group.
    """

    inputs: dict[str, Input] = field(default_factory=dict)
    instructions: list[Instruction] = field(default_factory=list)
    outputs: dict[str, Value] = field(default_factory=dict)
    places: dict[str, Value] = field(default_factory=dict)
    swallowed: dict[Instruction, Instruction] = field(default_factory=dict)
    caches: dict[str, CacheSpec] = field(default_factory=dict)
    groups: tuple[CacheSpec, ...] = ()
    group_of: dict[str, int] = field(default_factory=dict)

    def users(self) -> dict[Value, list[Instruction]]:
        """Who reads each value."""
        found: dict[Value, list[Instruction]] = {}
        for instruction in self.instructions:
            for value in instruction.values():
                found.setdefault(value, []).append(instruction)
        return found

    def producers(self) -> dict[Value, Instruction]:
        """Who makes each result."""
        return {result: instruction for instruction in self.instructions for result in instruction.results}

    def weights(self) -> list[Weight]:
        """Every constant, in the order of first use."""
        seen = dict.fromkeys(v for i in self.instructions for v in i.values() if isinstance(v, Weight))
        return list(seen)

    def replace(self, old: Value, new: Value, *, keep: tuple[Instruction, ...] = ()) -> None:
        """Let everyone but ``keep`` read ``new`` instead of ``old``."""
        for instruction in self.instructions:
            if instruction not in keep:
                instruction.args = tuple(substitute(argument, old, new) for argument in instruction.args)
        self.outputs = {name: new if value is old else value for name, value in self.outputs.items()}
        self.places = {name: new if value is old else value for name, value in self.places.items()}

    def drop_unused(self) -> None:
        """Remove instructions whose results nobody reads; those without a result are called for what they do."""
        wanted = set(self.outputs.values())
        kept = []
        for instruction in reversed(self.instructions):
            mutates = isinstance(instruction.target, OpDeclaration) and instruction.target.mutates
            if mutates or not instruction.results or any(result in wanted for result in instruction.results):
                kept.append(instruction)
                wanted.update(instruction.values())
        self.instructions = kept[::-1]

    def listing(self) -> str:
        """The program as text, a line a call."""

        def show(argument: Any) -> str:
            return argument.name if isinstance(argument, Value) else repr(argument)

        lines = []
        for i in self.instructions:
            results = ", ".join(result.name for result in i.results)
            call = f"{i.target.name}({', '.join(show(a) for a in i.args)})"
            lines.append(f"{results} = {call}" if results else call)
        return "\n".join(lines)


def values_in(argument: Any) -> Iterator[Value]:
    """The values inside an argument, which may be a list or tuple."""
    if isinstance(argument, Value):
        yield argument
    elif isinstance(argument, (list, tuple)):
        for item in argument:
            yield from values_in(item)


def substitute(argument: Any, old: Value, new: Value) -> Any:
    """The argument with one value replaced."""
    if argument is old:
        return new
    if isinstance(argument, (list, tuple)):
        return type(argument)(substitute(item, old, new) for item in argument)
    return argument


def fill(argument: Any, lookup: Callable[[Value], Any]) -> Any:
    """The argument with every value looked up."""
    if isinstance(argument, Value):
        return lookup(argument)
    if isinstance(argument, (list, tuple)):
        return type(argument)(fill(item, lookup) for item in argument)
    return argument
