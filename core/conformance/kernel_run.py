"""One run of a kernel on one call, in memory between bands, and what it left there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from bestiary.core import device as devices
from bestiary.core.conformance.kernel_cases import constants
from bestiary.core.conformance.kernel_memory import AROUND_INPUTS, AROUND_RESULTS, Banded, bits, same
from bestiary.core.conformance.kernel_state import ProcessState
from bestiary.core.ops.declare import OpDeclaration
from bestiary.core.program.compare import layout

Complaint = tuple[str, str]  # check, message
Weak = Callable[[], bool]  # whether somebody still holds a tensor's memory


class Expected:
    """What the op's reference makes of a call: its results, and what it changes in place, before and after."""

    def __init__(self, op: OpDeclaration[..., Any], args: tuple[Any, ...]) -> None:
        given = tuple(arg.clone() if isinstance(arg, Tensor) else arg for arg in args)
        self.results = as_tuple(op.reference(*given))
        self.before = mutated(op, args)
        self.after = mutated(op, given)

    @property
    def empty(self) -> bool:
        """Whether the call asks for nothing: there are results, or arguments to change, and none has an element."""
        asked = (*self.results, *self.after)
        return bool(asked) and not any(one.numel() for one in asked)


class Run:
    """A kernel's run. ``results`` holds what it wrote: ``out``, then the changed arguments.

    Args:
        pack: the kernel's ``pack``, if it has one.
        results: tensors that look like the call's results.
    """

    def __init__(
        self,
        op: OpDeclaration[..., Any],
        function: Callable[..., Any],
        pack: Callable[[dict[str, Tensor]], dict[str, Any]] | None,
        args: tuple[Any, ...],
        results: tuple[Tensor, ...],
        device: torch.device,
    ) -> None:
        self._op, self._function, self._pack, self._device = op, function, pack, device
        self._given = {
            name: Banded.copy(arg, around=AROUND_RESULTS if name in op.mutates else AROUND_INPUTS)
            for name, arg in zip(op.parameters, args, strict=True)
            if isinstance(arg, Tensor)
        }
        self._outs = [Banded.unwritten(tuple(one.shape), one.dtype, device) for one in results]
        outs = tuple(one.tensor for one in self._outs)
        self.keywords: dict[str, Any] = {"out": outs[0] if len(outs) == 1 else outs} if outs else {}
        self._constants: list[tuple[str, Tensor, Tensor]] = []  # what pack made: of which argument, and as it was
        self.args: list[Any] = self._packed(args)
        self._disturbed: list[str] = []  # what it changed of the process
        self._layouts = [layout(tensor) for _, tensor in self._tensors()]
        self.results = (*outs, *(self._given[name].tensor for name in op.mutates))

    def change(self, args: tuple[Any, ...]) -> None:
        """Other values for the next run, in the same memory; the tensors are laid out as before."""
        for name, arg in zip(self._op.parameters, args, strict=True):
            if isinstance(arg, Tensor):
                self._given[name].put(arg)
        for banded in self._outs:
            banded.restore()
        self.args = self._packed(args)

    def restore(self) -> None:
        """Results and changed arguments are again what they were before the kernel ran; the rest stays as it left it."""
        for banded in (*self._outs, *(self._given[name] for name in self._op.mutates)):
            banded.restore()

    def __call__(self) -> Any:
        """Run the kernel and wait for it; what it returned. What it changes of the process is undone."""
        state = ProcessState(self._device)
        try:
            returned = self.launch()
            devices.synchronize(self._device)
        finally:
            if changes := list(state.changes()):
                state.restore()
                self._disturbed = changes
        return returned

    def launch(self) -> Any:
        """Run the kernel; what it returned."""
        return self._function(*self.args, **self.keywords)

    def complaints(self, returned: Any, expected: Expected) -> Iterator[Complaint]:
        """What is wrong besides the numbers: what it returned, disturbed, laid out anew, changed or left out."""
        if returned is not None:
            yield "result", self._returned(returned)
        if self._disturbed:
            yield "state", f"changed {', '.join(self._disturbed)}, which the whole process shares"
        for (name, tensor), before in zip(self._tensors(), self._layouts, strict=True):
            if layout(tensor) != before:
                yield "result", f"gave {name} another shape, dtype or memory: found {layout(tensor)}, expected {before}"
                return
        for name, banded in self._given.items():
            if name not in self._op.mutates and (index := banded.change_inside()) is not None:
                yield "inputs", f"changed its argument {name} at {list(index)}"
        for name, tensor, was in self._constants:
            if not same(tensor, was):
                yield "inputs", f"changed what pack made of {name}, which the next call reads"
        for name, banded in self._banded():
            if (where := banded.change_outside()) is not None:
                yield "bands", f"wrote beside {name}: {where}"
        yield from self._unwritten(expected)
        yield from self._strayed(expected)

    def touched(self, expected: Expected) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each changed argument what is there and what the reference left, where that changed it."""
        for name, before, after in zip(self._op.mutates, expected.before, expected.after, strict=True):
            chosen = (bits(before) != bits(after)).any(1).view(after.shape)
            yield self._given[name].tensor[chosen], after[chosen]

    def references(self) -> list[tuple[str, Weak]]:
        """Weak references to the memory of what it was given, by name."""
        return [(name, weakly(one.tensor)) for name, one in self._banded()]

    def _packed(self, args: tuple[Any, ...]) -> list[Any]:
        named = dict(zip(self._op.parameters, args, strict=True)) | {n: one.tensor for n, one in self._given.items()}
        packed = {} if self._pack is None else self._pack(constants(self._op, tuple(named.values())))
        for banded in self._given.values():
            banded.keep()  # pack may do with a model's weights what it likes
        self._constants = [(name, one, one.clone()) for name, made in packed.items() for one in _tensors_in(made)]
        return [packed.get(name, value) for name, value in named.items()]

    def _unwritten(self, expected: Expected) -> Iterator[Complaint]:
        for (name, banded), wanted in zip(self._banded_outs(), expected.results, strict=True):
            left = (bits(banded.tensor) == 0xFF).all(1) & ~(bits(wanted) == 0xFF).all(1)
            if banded.tensor.dtype is not torch.bool and left.any():
                first = torch.unravel_index(left.nonzero()[0, 0], wanted.shape)
                place = [int(index) for index in first]
                yield "fill", f"left {int(left.sum())} of {wanted.numel()} elements of {name} unwritten, first {place}"

    def _strayed(self, expected: Expected) -> Iterator[Complaint]:
        """Elements of a changed argument that the reference leaves alone."""
        for name, before, after in zip(self._op.mutates, expected.before, expected.after, strict=True):
            touched = (bits(before) != bits(after)).any(1)
            changed = (bits(before) != bits(self._given[name].tensor)).any(1) & ~touched
            if changed.any():
                first = torch.unravel_index(changed.nonzero()[0, 0], after.shape)
                yield "bands", f"changed {name} at {[int(i) for i in first]}, which the reference leaves alone"

    def _returned(self, returned: Any) -> str:
        for name, tensor in self._tensors():
            if isinstance(returned, Tensor) and returned.untyped_storage().data_ptr() == _memory(tensor):
                return f"returned a view of {name}; a kernel fills out and returns nothing"
        return f"returned a {type(returned).__name__}; a kernel fills out and returns nothing"

    def _banded_outs(self) -> list[tuple[str, Banded]]:
        several = len(self._outs) > 1
        return [(f"out[{index}]" if several else "out", one) for index, one in enumerate(self._outs)]

    def _banded(self) -> list[tuple[str, Banded]]:
        return [*((f"its argument {name}", one) for name, one in self._given.items()), *self._banded_outs()]

    def _tensors(self) -> list[tuple[str, Tensor]]:
        return [(name, one.tensor) for name, one in self._banded()]


def weakly(tensor: Tensor) -> Weak:
    """Asks whether the tensor's memory is held, and does not hold it."""
    reference = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
    return lambda: not reference.expired()  # type: ignore[no-untyped-call]


def _tensors_in(made: Any) -> Iterator[Tensor]:
    """The tensors in lists, tuples and mappings."""
    if isinstance(made, Tensor):
        yield made
    elif isinstance(made, Mapping):
        for one in made.values():
            yield from _tensors_in(one)
    elif isinstance(made, list | tuple):
        for one in made:
            yield from _tensors_in(one)


def as_tuple(made: Any) -> tuple[Tensor, ...]:
    """What an op returned, as a tuple however many tensors they are."""
    return made if isinstance(made, tuple) else () if made is None else (made,)


def faked(op: OpDeclaration[..., Any], args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """Meta tensors like the call's results."""
    return as_tuple(op.fake(*(arg.to("meta") if isinstance(arg, Tensor) else arg for arg in args)))


def mutated(op: OpDeclaration[..., Any], args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """The arguments that a call changes in place, in the order of ``op.mutates``."""
    return tuple(args[op.parameters.index(name)] for name in op.mutates)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
