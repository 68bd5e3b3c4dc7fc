"""Executes the step program on batches. Knows tensors and blocks, nothing of how requests begin or end."""

from __future__ import annotations

from torch import Tensor

from bestiary.core.program.bound import StepProgram
from bestiary.core.runtime.batch import Batch
from bestiary.core.runtime.inputs import StepInputs


class Runner:
    """One rank's program, its weights and its caches."""

    def __init__(self, program: StepProgram, inputs: StepInputs) -> None:
        self.program, self.inputs = program, inputs

    def forward(self, batch: Batch) -> Tensor:
        """Logits ``[R, vocabulary]`` fp32 of the segments' rows, in order; overwritten by the next call."""
        return self.forward_all(batch)["logits"]

    def forward_all(self, batch: Batch) -> dict[str, Tensor]:
        """The logits and every tap, by name."""
        return self.program.run(self.inputs.write(batch))
