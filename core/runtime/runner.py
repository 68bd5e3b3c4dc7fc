"""Executes the step program on steps. Knows tensors and blocks, nothing of how requests begin or end."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

from torch import Tensor

from bestiary.core.program.bound import BoundCall, Observer, StepProgram
from bestiary.core.runtime.graphs import DecodeGraphs
from bestiary.core.runtime.inputs import StepInputs
from bestiary.core.runtime.messages import StepMessage


class StepObserver(Protocol):
    """Sees and makes every call of the steps that it is told of."""

    def begin(self, step: StepMessage) -> None:
        """A step follows."""

    def __call__(self, call: BoundCall) -> None:
        """Make it by ``call.run()``."""


class Runner:
    """One rank's program, its weights and its caches.

    Args:
        graphs: run steps that only decode as recorded graphs.
        tapped: a program like ``program`` that keeps the tensors of these names too, for steps whose requests ask for them.

    Attributes:
        observer: sees and makes every call of the steps while it is set; there are no graphs then.
    """

    observer: Observer | None = None
    _begin: Callable[[StepMessage], None] | None = None

    def __init__(
        self,
        program: StepProgram,
        inputs: StepInputs,
        graphs: DecodeGraphs | None = None,
        tapped: Callable[[Collection[str]], StepProgram] | None = None,
    ) -> None:
        self.program, self.inputs, self._graphs, self._tapped = program, inputs, graphs, tapped

    def observe(self, observer: StepObserver | None) -> None:
        """Let someone see and make every call, and tell him of each step before its calls; None: no one any more."""
        self.observer, self._begin = observer, None if observer is None else observer.begin

    @property
    def num_graphs(self) -> int:
        """Graphs recorded so far."""
        return 0 if self._graphs is None else len(self._graphs)

    def forward(self, step: StepMessage) -> dict[str, Tensor]:
        """``logits`` ``[R, vocabulary]`` fp32 of the step's rows, in order, and every tap, by name. The next call overwrites
        them."""
        beside = None
        if step.taps and self._tapped is not None:
            beside = self._tapped({name for rows in step.taps for name in rows.names})
        program = beside or self.program
        if self.observer is not None:
            if self._begin is not None:
                self._begin(step)
            return program.watch(self.inputs.write(step), self.observer)
        outputs = None if self._graphs is None else self._graphs.forward(step, beside)
        return program.run(self.inputs.write(step)) if outputs is None else outputs
