"""Every op call as a line of the log, at the level below debug."""

from __future__ import annotations

import logging

import torch

from bestiary.core.logs import TRACE
from bestiary.core.observe.calls import Call
from bestiary.core.observe.recorder import Recorder
from bestiary.core.program.bound import BoundCall
from bestiary.core.runtime.messages import StepMessage
from bestiary.core.runtime.runner import Runner

log = logging.getLogger("bestiary.trace")


class LoggingObserver(Recorder):
    """Writes each call down when it is made, and forgets it with its step."""

    def begin(self, step: StepMessage) -> None:
        self.steps.clear()
        super().begin(step)
        now = self.steps[-1]
        log.log(TRACE, "step %d: %s (tokens %d, sequences %d)", step.number, now.kind, now.tokens, now.sequences)

    def __call__(self, call: BoundCall) -> None:
        super().__call__(call)
        if call.run is not None:
            log.log(TRACE, "%s", line(self.steps[-1].calls[-1]))


def line(call: Call) -> str:
    """``12.3 µs  rms_norm=torch  layers.0.attention_norm  f32[5, 48] … → f32[5, 48]``."""
    return f"{call.seconds * 1e6:9.1f} µs  {call.op}={call.kernel}  {call.module}  {call.shapes}"


def observe_for_log(runner: Runner, device: torch.device, dtype: torch.dtype) -> None:
    """Log every call of a runner's steps, if the level is on now; there are no graphs then, and each call waits for the
    device."""
    if log.isEnabledFor(TRACE):
        runner.observe(LoggingObserver(device, dtype))
