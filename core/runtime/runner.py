"""Executes the step program on steps. Knows tensors and blocks, nothing of how requests begin or end."""

from __future__ import annotations

from torch import Tensor

from bestiary.core.program.bound import Observer, StepProgram
from bestiary.core.runtime.graphs import DecodeGraphs
from bestiary.core.runtime.inputs import StepInputs
from bestiary.core.runtime.messages import StepMessage


class Runner:
    """One rank's program, its weights and its caches.

    Args:
        graphs: run steps that only decode as recorded graphs.

    Attributes:
        observer: sees and makes every call of the steps while it is set; there are no graphs then.
    """

    observer: Observer | None = None

    def __init__(self, program: StepProgram, inputs: StepInputs, graphs: DecodeGraphs | None = None) -> None:
        self.program, self.inputs, self._graphs = program, inputs, graphs

    @property
    def num_graphs(self) -> int:
        """Graphs recorded so far."""
        return 0 if self._graphs is None else len(self._graphs)

    def forward(self, step: StepMessage) -> dict[str, Tensor]:
        """``logits`` ``[R, vocabulary]`` fp32 of the step's rows, in order, and every tap, by name. The next call overwrites
        them."""
        if self.observer is not None:
            return self.program.watch(self.inputs.write(step), self.observer)
        outputs = None if self._graphs is None else self._graphs.forward(step)
        return self.program.run(self.inputs.write(step)) if outputs is None else outputs
