"""Executes the step program on steps. Knows tensors and blocks, nothing of how requests begin or end."""

from __future__ import annotations

from torch import Tensor

from bestiary.core.program.bound import StepProgram
from bestiary.core.runtime.inputs import StepInputs
from bestiary.core.runtime.messages import StepMessage


class Runner:
    """One rank's program, its weights and its caches."""

    def __init__(self, program: StepProgram, inputs: StepInputs) -> None:
        self.program, self.inputs = program, inputs

    def forward(self, step: StepMessage) -> dict[str, Tensor]:
        """``logits`` ``[R, vocabulary]`` fp32 of the step's rows, in order, and every tap, by name. The next call overwrites
        them."""
        return self.program.run(self.inputs.write(step))
