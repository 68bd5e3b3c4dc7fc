"""What requests may ask to keep of a loaded engine's tensors, and the step programs that keep it.

T tokens of a step. A tapped step runs the engine's own calls, by the same kernels on the same weights, with memory of its own
for activations; what fusions swallowed is made beside them.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property

from torch import Tensor

from bestiary.core.engine.network import Network
from bestiary.core.errors import RequestError, UsageError
from bestiary.core.program.bind import packed_away
from bestiary.core.program.bound import BoundKernel, StepProgram
from bestiary.core.program.buffers import assign, needed
from bestiary.core.program.passes.taps import tapped
from bestiary.core.program.places import place
from bestiary.core.program.program import Instruction, Program, Value, Weight
from bestiary.core.program.shapes import Dim, Shape, infer
from bestiary.core.runtime.inputs import StepInputs

#: How many sets of names keep their program and its memory.
_KEPT = 4
# Names that an error shows.
_SHOWN = 3


class TapNames:
    """The tensors of a network that have a row for each token."""

    def __init__(self, network: Network) -> None:
        self.network = network

    @cached_property
    def shapes(self) -> Mapping[Value, Shape]:
        """Of every tensor that can be made, those too that fusions swallowed."""
        program, geometry = self.network.program, self.network.geometry
        return infer(tapped(program, program.places), geometry) if program.swallowed else self.network.shapes

    def check(self, names: Sequence[str]) -> None:
        """Refuse what can't be kept.

        Raises:
            RequestError: no tensor has the name, or it has no row for each token.
        """
        for name in names:
            value = self._place(name)
            if not self._by_token(value):
                shape = self.shapes.get(value)
                raise RequestError(
                    "E-REQ-TAPS",
                    f"taps {name}",
                    "has no row for each token",
                    found="no tensor of its own" if shape is None else str(shape),
                    expected=f"one such as {', '.join(self.names[-_SHOWN:])}",
                    hint="logits are made for some tokens only: keep what the last layer or norm returns",
                )

    @property
    def names(self) -> list[str]:
        """All names of tensors ``[T, …]``, in the order in which they are made."""
        return [name for name, value in self.network.program.places.items() if self._by_token(value)]

    def _place(self, name: str) -> Value:
        try:
            return place(self.network.program, name)
        except UsageError as error:
            raise RequestError(error.code, f"taps {name}", error.problem, hint=error.hint) from None

    def _by_token(self, value: Value) -> bool:
        shape = self.shapes.get(value)
        return shape is not None and bool(shape.dims) and shape.dims[0] == Dim(0, tokens=1)


class ReferenceTaps(TapNames):
    """Of the reference mode, which has what modules take and return, and nothing that ops make within them."""

    def check(self, names: Sequence[str]) -> None:
        super().check(names)
        modules = dict(self.network.module.named_modules())
        for name in names:
            if name.removesuffix(".output").removesuffix(".input") not in modules:
                raise RequestError(
                    "E-REQ-TAPS",
                    f"taps {name}",
                    "is made within a module, which the reference mode does not show",
                    expected="what a module takes (….input) or returns",
                    hint="load the engine without reference=True",
                )


class TapPrograms(TapNames):
    """The step programs that keep tensors, made when they are first needed; the last few stay.

    Args:
        kernels: of the engine's own calls.
        weights: of the engine's own calls.
        bind: kernels of further calls.
        constant: a weight that the engine does not hold as it is.
        room: bytes that these programs may take; None: whatever there is.
    """

    def __init__(
        self,
        network: Network,
        kernels: Mapping[Instruction, tuple[BoundKernel, ...]],
        weights: Mapping[Weight, Tensor],
        inputs: StepInputs,
        *,
        bind: Callable[[Program, Mapping[Value, Shape]], Mapping[Instruction, tuple[BoundKernel, ...]]],
        constant: Callable[[Weight], Tensor],
        room: int | None,
    ) -> None:
        super().__init__(network)
        self._inputs, self._room = inputs, room
        self._bind, self._constant = bind, constant
        self._kernels, self._weights = dict(kernels), dict(weights)
        self._made: OrderedDict[frozenset[str], StepProgram] = OrderedDict()
        self._asked: set[str] = set()
        self._lock = threading.Lock()

    def check(self, names: Sequence[str]) -> None:
        """Refuse what can't be kept, and choose the kernels that it needs besides the engine's.

        Raises:
            RequestError: as for :class:`TapNames`; or ``memory_limit`` has no room for it.
            ConfigError: in deterministic mode, no batch-invariant kernel can make one of them.
        """
        super().check(names)
        with self._lock:
            # Requests that ask for different names meet in one step, so all that were ever asked for must fit together.
            asked = self._asked | set(names)
            program = tapped(self.network.program, asked)
            self._add_kernels(program)
            if self._room is not None:
                self._check_room(self._bytes(program), names, self._room)
            self._asked = asked

    def program(self, names: Collection[str]) -> StepProgram:
        """One that keeps these tensors, which were checked, and perhaps others."""
        wanted = frozenset(names)
        found = wanted if wanted in self._made else next((kept for kept in self._made if kept > wanted), None)
        if found is not None:
            self._made.move_to_end(found)
            return self._made[found]
        made = self._make(wanted)
        self._made[wanted] = made
        while len(self._made) > (_KEPT if self._room is None else 1):
            self._made.popitem(last=False)
        return made

    def _make(self, names: Collection[str]) -> StepProgram:
        program = tapped(self.network.program, names)
        weights = {weight: self._weights[weight] for weight in program.weights() if weight in self._weights}
        made = StepProgram(program, self.shapes, self._kernels, weights, self._inputs.views, self.network.target.device)
        if self._room is not None:
            self._made.clear()
            made.reserve(self.network.limits)
        return made

    def _add_kernels(self, program: Program) -> None:
        """Of the calls that the engine's own program lacks, with the weights that they read as they are."""
        own = set(self.network.program.instructions)
        new = [call for call in program.instructions if call not in own and call not in self._kernels]
        beside = Program(instructions=new)
        kernels = self._bind(beside, self.shapes)
        packed = {weight for call in new for weight in packed_away(call, kernels[call])}
        read = [weight for weight in beside.weights() if weight not in self._weights and weight not in packed]
        self._weights.update({weight: self._constant(weight) for weight in read})
        self._kernels.update(kernels)

    def _bytes(self, program: Program) -> int:
        return sum(needed(assign(program, self.shapes), self.shapes, self.network.limits))

    def _check_room(self, size: int, names: Sequence[str], room: int) -> None:
        if size > room:
            raise RequestError(
                "E-REQ-TAPS",
                f"taps {', '.join(names[:_SHOWN])}",
                "would take more memory than memory_limit leaves beside the engine",
                found=f"{size:,} bytes of activations",
                expected=f"at most {max(0, room):,} bytes",
                hint="lower kv_cache_memory or max_num_tokens, or raise memory_limit",
            )
