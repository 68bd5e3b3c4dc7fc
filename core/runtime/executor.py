"""Where steps run: in this process, or in ranks that other processes hold. The loop sees no difference."""

from __future__ import annotations

from typing import Protocol

from bestiary.core.errors import EngineError
from bestiary.core.runtime.messages import SampledMessage, SampleMessage, StepMessage


class Pending(Protocol):
    """A step's results, perhaps still being made."""

    def read(self) -> SampledMessage:
        """Wait for them."""


class Executor(Protocol):
    """Runs steps in the order in which they are launched.

    Attributes:
        overlaps: the host goes on while a step runs, so the next one is decided and launched before its results are read.
        takes_functions: its ranks run in this process, so that a request may bring functions along.
        failure: what ended the executor for good; None while it works.
    """

    overlaps: bool
    takes_functions: bool
    failure: EngineError | None

    def forward(self, step: StepMessage) -> None:
        """Launch a step.

        Raises:
            Exception: it failed; later steps may run, unless ``failure`` is set.
        """

    def sample(self, wanted: SampleMessage) -> Pending:
        """Launch the choice of tokens from the logits of the step launched last."""

    def report(self) -> None:
        """A step hangs: have other processes of the engine say where they are. Called beside the step."""

    def abandon(self) -> None:
        """A step hangs and ``failure`` says so: end other processes of the engine. Called beside the step."""

    def close(self) -> None:
        """End it and let go of its memory. May be called again."""
