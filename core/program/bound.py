"""The step program ready to run: for each step's sizes a plain list of bound calls on fixed memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bestiary.core.ops.declare import OpDeclaration
from bestiary.core.program.buffers import Arena, assign
from bestiary.core.program.call_error import named
from bestiary.core.program.calls import rows_of
from bestiary.core.program.program import Instruction, Program, TorchCall, Value, Weight, fill
from bestiary.core.program.shapes import Shape, Sizes

#: How many step sizes keep their list of calls; a decode of a steady batch finds its own again.
_KEPT = 128


@dataclass(frozen=True)
class BoundKernel:
    """A kernel's function for calls of up to ``rows`` rows; ``packed`` replaces constant arguments by position.

    ``graph_safe``: it waits for nothing on the host.
    """

    rows: int | None
    name: str
    run: Callable[..., None]
    packed: Mapping[int, Any] = field(default_factory=dict)
    graph_safe: bool = False


class BoundCall(NamedTuple):
    """One call of a step, for those who watch it.

    ``kernel``: its name; None for a function or view of torch's. ``args``: as the kernel gets them. ``results``: the tensors
    that it fills. ``run`` makes the call; None for a view, which is there already.
    """

    instruction: Instruction
    kernel: str | None
    args: tuple[Any, ...]
    results: tuple[Tensor, ...]
    run: Callable[[], Any] | None


#: Is given every call of a step in order, and makes it by ``call.run()``.
Observer = Callable[[BoundCall], None]


class StepProgram:
    """Runs a program whose kernels are bound. Inputs are views of the same memory at every step."""

    def __init__(
        self,
        program: Program,
        shapes: Mapping[Value, Shape],
        kernels: Mapping[Instruction, tuple[BoundKernel, ...]],
        weights: Mapping[Weight, Tensor],
        inputs: Callable[[Sizes], Mapping[str, Tensor]],
        device: torch.device,
    ) -> None:
        self.program = program
        self._shapes, self._kernels, self._weights, self._inputs = shapes, kernels, weights, inputs
        self._arena = Arena(assign(program, shapes), shapes, device)
        self._lists: OrderedDict[Sizes, tuple[list[Callable[[], Any]], dict[str, Tensor]]] = OrderedDict()

    def run(self, sizes: Sizes) -> dict[str, Tensor]:
        """Execute one step; the outputs by name. They are overwritten by the next step.

        Raises:
            CallError: a call raises.
        """
        calls, outputs = self.bind(sizes)
        try:
            for call in calls:
                call()
        except Exception as error:
            # Here, and not around each call: a step has hundreds.
            failed = [one for one in self._bind(sizes)[0] if one.run is not None][calls.index(call)]
            with named(failed.instruction, failed.kernel, sizes.tokens):
                raise error
        return outputs

    def watch(self, sizes: Sizes, observer: Observer) -> dict[str, Tensor]:
        """Execute one step like ``run``, every call through an observer.

        Raises:
            CallError: a call raises.
        """
        self.reserve(sizes)
        calls, outputs = self._bind(sizes)
        for call in calls:
            observer(call if call.run is None else call._replace(run=partial(_told, call, call.run, sizes.tokens)))
        return outputs

    def reserve(self, sizes: Sizes) -> None:
        """Take the activations' memory for steps of up to these sizes now, so that none of them asks for more."""
        if self._arena.reserve(sizes):
            self._lists.clear()

    @property
    def activation_bytes(self) -> int:
        """What the results of all instructions take now."""
        return self._arena.nbytes

    @property
    def graph_safe(self) -> bool:
        """Whether every call may be recorded."""
        return all(kernel.graph_safe for kernels in self._kernels.values() for kernel in kernels)

    def bind(self, sizes: Sizes) -> tuple[list[Callable[[], Any]], dict[str, Tensor]]:
        """The list of calls for these sizes, made when first needed."""
        known = self._lists.get(sizes)
        if known is not None:
            self._lists.move_to_end(sizes)
            return known
        self.reserve(sizes)
        calls, outputs = self._bind(sizes)
        self._lists[sizes] = made = [call.run for call in calls if call.run is not None], outputs
        if len(self._lists) > _KEPT:
            self._lists.popitem(last=False)
        return made

    def _bind(self, sizes: Sizes) -> tuple[list[BoundCall], dict[str, Tensor]]:
        given = self._inputs(sizes)
        tensors: dict[Value, Any] = {value: given[name] for name, value in self.program.inputs.items()}
        for weight, tensor in self._weights.items():
            tensors[weight] = tensor
        calls = [self._call(instruction, tensors, sizes) for instruction in self.program.instructions]
        return calls, {name: tensors[value] for name, value in self.program.outputs.items()}

    def _call(self, instruction: Instruction, tensors: dict[Value, Any], sizes: Sizes) -> BoundCall:
        target = instruction.target
        if isinstance(target, TorchCall) and self._shapes[instruction.results[0]].base is not None:
            # A view of fixed memory is itself fixed: taken here, it costs nothing at run time.
            args = fill(instruction.args, tensors.__getitem__)
            view = tensors[instruction.results[0]] = target.function(*args, **dict(target.keywords))
            return BoundCall(instruction, None, args, (view,), None)
        for result in instruction.results:
            tensors[result] = self._arena.view(result, sizes)
        outs = tuple(tensors[result] for result in instruction.results)
        if isinstance(target, TorchCall):
            args = fill(instruction.args, tensors.__getitem__)
            run = partial(_torch_call, target.function, args, dict(target.keywords), outs[0])
            return BoundCall(instruction, None, args, outs, run)
        kernel = self.kernel(instruction, sizes)
        args = tuple(
            kernel.packed[index] if index in kernel.packed else fill(argument, tensors.__getitem__)
            for index, argument in enumerate(instruction.args)
        )
        out = {"out": outs[0] if len(outs) == 1 else outs} if outs else {}
        return BoundCall(instruction, kernel.name, args, outs, partial(kernel.run, *args, **out))

    def kernel(self, instruction: Instruction, sizes: Sizes) -> BoundKernel:
        """Which kernel runs an instruction at these sizes."""
        rows = rows_of(instruction, self._shapes).at(sizes)
        return next(k for k in self._kernels[instruction] if k.rows is None or rows <= k.rows)


def reference_kernel(op: OpDeclaration[..., Any]) -> Callable[..., None]:
    """The op's reference in the form of a kernel: it fills ``out``."""

    def run(*args: Any, out: Any = None) -> None:
        made = op.reference(*args)
        if op.results == 1:
            out.copy_(made)
        elif op.results:
            for target, tensor in zip(out, made, strict=True):
                target.copy_(tensor)

    return run


def _told(call: BoundCall, run: Callable[[], Any], tokens: int) -> None:
    with named(call.instruction, call.kernel, tokens):
        run()


def _torch_call(function: Callable[..., Tensor], args: tuple[Any, ...], keywords: dict[str, Any], out: Tensor) -> None:
    out.copy_(function(*args, **keywords))
