"""An engine's step program as a side, watched call by call."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bestiary.core import device as devices
from bestiary.core.engine.load import LoadedEngine
from bestiary.core.engine.steps import opened, step
from bestiary.core.errors import RequestError
from bestiary.core.kv_format import BlockFormat
from bestiary.core.ops.declare import OpDeclaration
from bestiary.core.ops.kv_blocks import numbers_of
from bestiary.core.program.bound import BoundCall
from bestiary.core.program.call_error import named
from bestiary.core.program.calls import signature
from bestiary.core.program.program import Input, Instruction, Value, fill
from bestiary.core.program.shapes import Dim, Sizes
from bestiary.core.quant.choose import Methods
from bestiary.core.runtime.messages import StepMessage
from bestiary.core.runtime.reference import ReferenceRunner
from bestiary.core.sides.guard import Guard, is_cache
from bestiary.core.sides.side import Instead, Made, Seen, Spoiled, common_name, plain

_ROW_EACH = (Dim(0, tokens=1), Dim(0, rows=1))


class Captured(NamedTuple):
    """A call as it was made.

    Args:
        args: in the op's order, tensors copied before the call.
        select: the tensor that was asked for, of the call's results: one of them, or a view of one.
        rows: which of the sequence's tokens it was for.
    """

    op: OpDeclaration[..., Any]
    args: tuple[Any, ...]
    select: Callable[[Sequence[Tensor]], Tensor]
    rows: slice


class EngineSide:
    """A loaded engine that runs one sequence at a time, in blocks of its own: nobody else may use it meanwhile.

    Args:
        engine: in this process, with a step program.
    """

    def __init__(self, engine: LoadedEngine, label: str) -> None:
        assert not isinstance(engine.runner, ReferenceRunner)
        self.engine, self.label, self._runner = engine, label, engine.runner
        program, shapes = engine.network.program, engine.network.shapes
        self._names: dict[Value, list[str]] = {}
        for name, value in program.places.items():
            if value in shapes and shapes[value].dims and shapes[value].dims[0] in _ROW_EACH:
                self._names.setdefault(value, []).append(name)
        self._names.setdefault(program.outputs["logits"], []).append("logits")
        self._order = {value: number for number, value in enumerate(self._names)}
        views = {value for value, shape in shapes.items() if shape.base is not None}
        self._by = {value: _made_by(value, program.producers(), views) for value in self._names}
        self._views = views

    @property
    def longest(self) -> int:
        """Most tokens of a step that has logits for each of them."""
        limits = self.engine.network.limits
        return min(limits.tokens, limits.rows)

    @property
    def vocab_size(self) -> int:
        """How many tokens have a logit."""
        return self.engine.vocab_size

    @property
    def few_bits(self) -> str | None:
        """The kind of codes that its KV cache stores; None: it stores the numbers of a dtype."""
        stored = self.engine.network.geometry.kv_dtype
        return stored if isinstance(stored, str) else None

    @property
    def methods(self) -> Methods:
        """The quantization method of each parameter that it reads quantized."""
        return self.engine.methods

    def run(
        self, tokens: Sequence[int], chunks: Sequence[int] = (), instead: Instead | None = None, *, guard: bool = False
    ) -> Seen:
        """All tensors of one sequence; those that a fusion swallowed are not there.

        What a layer's cache holds of the tokens is ``layers.0.attention.cache.k`` and ``.v``.

        Args:
            chunks, instead: see :class:`~bestiary.core.sides.side.Side`.
            guard: look whether calls change what their ops' declarations don't let them, and put it back, so that the rest
                of the run is made of what was there; it copies every input.

        Raises:
            RequestError: the sequence or a chunk is too long for the engine.
            CallError: a call raises.
        """
        watcher = _Watcher(self, instead or Instead(), guard=guard)
        self._watched(tokens, chunks, watcher)
        return watcher.seen()

    def capture(self, name: str, tokens: Sequence[int], chunks: Sequence[int], instead: Instead) -> list[Captured]:
        """The calls that made a tensor, one in each chunk; empty where no op made it."""
        value = next((value for value, names in self._names.items() if name in names), None)
        if value is None or not isinstance(self._by[value].target, OpDeclaration):
            return []
        watcher = _Watcher(self, instead, self._by[value])
        self._watched(tokens, chunks, watcher)
        select = _selection(value, self.engine.network.program.producers(), self._views)
        return [Captured(op, args, select, rows) for op, args, rows in watcher.captured]

    def between(self, name: str, known: Mapping[str, Tensor]) -> list[Instruction]:
        """The calls of ops that lie between a tensor and the nearest ones that are known by name, the nearest first."""
        wanted = [value for value, names in self._names.items() if name in names]
        producers = self.engine.network.program.producers()
        found: dict[Instruction, None] = {}
        if not wanted:  # of a cache: what writes it
            path = name.rpartition(".")[0]
            writes = [i for i in self.engine.network.program.instructions if _writes(i, path)]
            found = dict.fromkeys(writes)
            wanted = [value for i in writes for value in i.values() if not self._known(value, known)]
        while wanted:
            value = wanted.pop(0)
            instruction = producers.get(value)
            if instruction is not None and instruction not in found:
                found[instruction] = None
                wanted += [one for one in instruction.values() if not self._known(one, known)]
        return [i for i in found if isinstance(i.target, OpDeclaration)]

    def after(self, call: Instruction, known: Collection[str]) -> str | None:
        """The nearest tensor with a known name that a call makes, or that is made of what it makes."""
        users, waiting, seen = self.engine.network.program.users(), [call], {call}
        while waiting:
            made = waiting.pop(0)
            for value in sorted(made.results, key=lambda value: self._order.get(value, 0)):
                if name := common_name(self.names(value), known):
                    return name
                new = [user for user in users.get(value, []) if user not in seen]
                waiting += new
                seen.update(new)
            for path in (value.name.partition(".")[2] for value in made.args if is_cache(value)):
                if _writes(made, path) and f"{path}.k" in known:
                    return f"{path}.k"
        return None

    def who(self, call: Instruction, kernel: str | None) -> Made:
        """Who a call is."""
        return _made(call, kernel, self.engine)

    def logits(self, tokens: Sequence[int]) -> Tensor:
        """After each token, ``[tokens, vocabulary]`` float32, in as few steps as the engine's limits allow."""
        pieces, start = [], 0
        while start < len(tokens):
            size = min(self.longest, len(tokens) - start)
            with torch.inference_mode():
                pieces.append(plain(self._runner.forward(self._message(tokens, start, size))["logits"]))
            start += size
        return torch.cat(pieces)

    def names(self, value: Value) -> Sequence[str]:
        """The names of a value of the program."""
        return self._names.get(value, ())

    def in_order(self, results: Iterable[tuple[Value, Tensor]]) -> list[tuple[Value, Tensor]]:
        """Results of one call, as the model makes them without fusions: a sum before its norm."""
        return sorted(results, key=lambda one: self._order.get(one[0], 0))

    def made(self, value: Value, kernel: str | None) -> Made:
        """Who made a value: of a view, who made what it shows."""
        return _made(self._by[value], kernel, self.engine)

    def kernel(self, call: Instruction, tokens: int) -> str:
        """The kernel that runs a call of an op in steps of so many tokens."""
        return self._runner.program.kernel(call, Sizes(tokens, 1, tokens)).name

    def stored(self, cache: Input, blocks: Tensor) -> Tensor:
        """What a cache holds, token by token in the order of its slots; of few bits the numbers that they stand for."""
        network = self.engine.network
        if dtype := self.few_bits:
            kind, _, path = cache.name.partition(".")
            spec = network.program.caches[path]
            size = spec.k_size if kind == "k" else spec.v_size
            blocks = numbers_of(blocks, BlockFormat(dtype, network.geometry.block_size, spec.kv_heads, size))
        return blocks.flatten(0, 1)

    def _known(self, value: Value, known: Mapping[str, Tensor]) -> bool:
        return any(name in known for name in self.names(value))

    def _watched(self, tokens: Sequence[int], chunks: Sequence[int], watcher: _Watcher) -> None:
        start = 0
        for size in chunks or (len(tokens),):
            watcher.begin(start, size)
            self._runner.observer = watcher
            try:
                with torch.inference_mode():
                    self._runner.forward(self._message(tokens, start, size))
            finally:
                self._runner.observer = None
            start += size

    def _message(self, tokens: Sequence[int], start: int, size: int) -> StepMessage:
        if len(tokens) > self.engine.max_seq_len or size > self.longest:
            raise RequestError(
                "E-SIDE-LENGTH",
                self.label,
                "can't run a sequence of this length",
                found=f"{len(tokens)} tokens, {size} of them in a step",
                expected=f"at most {self.engine.max_seq_len}, {self.longest} in a step",
            )
        if start == 0:
            # A token's slot is then its position.
            tables = [range(-(-len(tokens) // group.block_size)) for group in self.engine.cache_groups]
            new = [opened(0, tokens)]
            return step((0, tokens[:size]), new=new, blocks={0: tables}, rows=range(size))
        if size == 1:
            self._runner.inputs.state.last[0] = tokens[start]
            return step(decodes=[0])
        return step((0, tokens[start : start + size]), rows=range(size))


class _Watcher:
    """Sees the calls of one sequence's steps, keeps what has a name, and puts other tensors in its place."""

    def __init__(
        self, side: EngineSide, instead: Instead, wanted: Instruction | None = None, *, guard: bool = False
    ) -> None:
        self._side, self._instead, self._wanted, self._guard = side, instead, wanted, guard
        self._parts: dict[tuple[str, ...], list[Tensor]] = {}
        self._seen, self._rows, self._decoding = Seen(), slice(0, 0), False
        self._kernels: dict[Value, str | None] = {}
        self.captured: list[tuple[OpDeclaration[..., Any], tuple[Any, ...], slice]] = []

    def begin(self, start: int, size: int) -> None:
        """The next step has these tokens."""
        self._rows, self._decoding = slice(start, start + size), start > 0 and size == 1

    def __call__(self, call: BoundCall) -> None:
        instruction = call.instruction
        target = instruction.target
        if instruction is self._wanted and isinstance(target, OpDeclaration):
            args = tuple(_copied(arg) for arg in call.args)
            self.captured.append((target, args, self._rows))
        if call.run is not None:
            self._run(call, call.run)
            with named(instruction, call.kernel, self._rows.stop - self._rows.start):
                devices.synchronize(self._side.engine.network.target.device)  # which tells of a call's failure later
        for value, tensor in self._side.in_order(zip(instruction.results, call.results, strict=True)):
            if isinstance(target, OpDeclaration):
                self._kernels[value] = call.kernel
            elif call.run is None:  # a view is made by whoever made what it shows
                self._kernels[value] = next((self._kernels.get(base) for base in instruction.values()), None)
            if names := self._side.names(value):
                self._see(tuple(names), tensor, self._side.made(value, self._kernels.get(value)))
        if isinstance(target, OpDeclaration) and target.mutates:
            by = _made(instruction, call.kernel, self._side.engine)
            for value, tensor in zip(instruction.args, call.args, strict=True):
                if is_cache(value):
                    kind, _, path = value.name.partition(".")
                    self._see((f"{path}.{kind}",), self._side.stored(value, tensor)[self._rows], by)

    def seen(self) -> Seen:
        """What was seen of all steps."""
        for names, pieces in self._parts.items():
            self._seen.tensors.update(dict.fromkeys(names, torch.cat(pieces)))
            self._seen.groups.append(names)
        return self._seen

    def _run(self, call: BoundCall, run: Callable[[], Any]) -> None:
        if not (self._guard and isinstance(call.instruction.target, OpDeclaration)):
            run()
            return
        guard = Guard(call, self._rows)
        run()
        for change in guard.undo():
            by = _made(call.instruction, call.kernel, self._side.engine)
            self._seen.spoiled.append(Spoiled(by, *change, self._decoding))

    def _see(self, names: tuple[str, ...], tensor: Tensor, by: Made) -> None:
        found = plain(tensor)
        self._parts.setdefault(names, []).append(found)
        (self._seen.decoded if self._decoding else self._seen.made).update(dict.fromkeys(names, by))
        right = self._instead.of(names, found, self._rows)
        if right is not None:
            tensor.copy_(right)


def _made(instruction: Instruction, kernel: str | None, engine: LoadedEngine) -> Made:
    target = instruction.target
    if not isinstance(target, OpDeclaration):
        return Made(target.name, None, instruction.scope)
    call = signature(instruction, engine.network.shapes, engine.network.target.dtype)
    pairs = zip(target.parameters, instruction.args, strict=True)
    others = {name: arg for name, arg in pairs if not isinstance(arg, Value | list | tuple)}
    return Made(target.name, kernel, instruction.scope, call, others)


def _made_by(value: Value, producers: Mapping[Value, Instruction], views: Collection[Value]) -> Instruction:
    """Who makes a value, or what it is a view of."""
    instruction = producers[value]
    if value in views:
        for base in instruction.values():
            if base in producers:
                return _made_by(base, producers, views)
    return instruction


def _selection(
    value: Value, producers: Mapping[Value, Instruction], views: Collection[Value]
) -> Callable[[Sequence[Tensor]], Tensor]:
    """From the results of the op behind a value to the value."""
    instruction = producers[value]
    target = instruction.target
    if value not in views or isinstance(target, OpDeclaration):
        place = [result is value for result in instruction.results].index(True)
        return lambda results: results[place]
    base = next(one for one in instruction.values() if one in producers)
    inner, keywords = _selection(base, producers, views), dict(target.keywords)
    return lambda results: target.function(*fill(instruction.args, lambda _: inner(results)), **keywords)


def _writes(instruction: Instruction, path: str) -> bool:
    mutates = isinstance(instruction.target, OpDeclaration) and instruction.target.mutates
    return bool(mutates) and any(isinstance(v, Input) and v.name == f"k.{path}" for v in instruction.values())


def _copied(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return argument.clone()
    if isinstance(argument, list | tuple):
        return type(argument)(_copied(one) for one in argument)
    return argument
