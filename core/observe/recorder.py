"""Records every call of an engine's steps."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch

from bestiary.core import device as devices
from bestiary.core.observe.calls import Call, describe
from bestiary.core.program.bound import BoundCall
from bestiary.core.runtime.messages import StepMessage


@dataclass
class Step:
    """One step and its calls.

    Args:
        number: counted from 1.
        kind: ``prefill``, ``decode`` or ``mixed``.
        tokens, sequences: that it computed.
        began: seconds since the recording began.
    """

    number: int
    kind: str
    tokens: int
    sequences: int
    began: float
    calls: list[Call] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """From its beginning to the end of its last call; what the host does between the calls is in it."""
        return self.calls[-1].began + self.calls[-1].seconds - self.began if self.calls else 0.0

    @property
    def in_calls(self) -> float:
        """Seconds in its calls."""
        return sum(call.seconds for call in self.calls)


class Recorder:
    """An observer of a runner's steps: makes each call alone on the device and remembers it.

    Args:
        dtype: of the engine's weights.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        self._zero = time.perf_counter()
        self.steps: list[Step] = []

    def begin(self, step: StepMessage) -> None:
        """A step follows."""
        sequences = len(step.slots)
        kind = "decode" if step.decodes == sequences else "mixed" if step.decodes else "prefill"
        self.steps.append(Step(len(self.steps) + 1, kind, step.num_tokens, sequences, self._now()))

    def __call__(self, call: BoundCall) -> None:
        if call.run is None:
            return  # a view, which was taken when the step was bound
        began = self._now()
        seconds = devices.timed(call.run, self._device)
        self.steps[-1].calls.append(describe(call, self._dtype, began, seconds))

    def _now(self) -> float:
        return time.perf_counter() - self._zero
