"""One rank at work: runs steps and chooses tokens, as messages tell it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from bestiary.core import device as devices
from bestiary.core.ops.collective import UNDIVIDED, Place
from bestiary.core.runtime.inputs import StepInputs
from bestiary.core.runtime.logprobs import LogprobRows
from bestiary.core.runtime.looks import Looks
from bestiary.core.runtime.messages import Logprobs, SampledMessage, SampleMessage, StepMessage, TapRows
from bestiary.core.runtime.sampler import Sampled, Sampler


class StepRunner(Protocol):
    """Runs steps on the inputs' memory."""

    inputs: StepInputs

    def forward(self, step: StepMessage) -> dict[str, Tensor]: ...


class Worker:
    """A runner and the sampler of its logits.

    Args:
        processor: the function of a registered logits processor's name.
        place: among the ranks of the engine. Only those of the last stage have logits, and one of them speaks for all.
        intact: called before each step; raises EngineError where the engine must run no more.
    """

    def __init__(
        self,
        runner: StepRunner,
        processor: Callable[[str], Callable[..., Tensor]],
        place: Place = UNDIVIDED,
        *,
        intact: Callable[[], None] = lambda: None,
    ) -> None:
        self.runner, self._place, self._intact = runner, place, intact
        self.outputs: dict[str, Tensor] = {}  # of the last step: logits and taps
        self._taps: tuple[TapRows, ...] = ()  # of the last step
        self._sampler = Sampler(runner.inputs.state, processor)

    def forward(self, step: StepMessage) -> None:
        """Launch a step.

        Raises:
            EngineError: the engine must run no more.
        """
        self._intact()
        self._sampler.open(step.opened)
        with torch.inference_mode():
            self.outputs = self.runner.forward(step)
        self._taps = step.taps

    def sample(self, wanted: SampleMessage) -> Reading:
        """Launch the choice of tokens from the last step's logits."""
        with torch.inference_mode():
            if self._place.samples:
                sampled = self._sampler.sample(self.outputs["logits"], wanted)
            else:
                sampled = Sampled(self.runner.inputs.state.device_ints(wanted.slots), None, (), {}, [], Looks())
            if self._place.count > 1:
                self._place.share(sampled.tokens)
                self._sampler.chose(wanted, sampled.tokens)
            return Reading(sampled, [_rows(self.outputs, rows) for rows in self._taps])


class Reading:
    """A step's results on their way to the host."""

    def __init__(self, sampled: Sampled, taps: Sequence[Mapping[str, Tensor]] = ()) -> None:
        self._errors, self._slow_calls = sampled.errors, tuple(sampled.slow_calls)
        self._looks, self._seen = sampled.looks, [devices.fetch(part) for part in sampled.looks.fine()]
        self._tokens = devices.fetch(sampled.tokens)
        self._logprobs = None if sampled.logprobs is None else _fetched(sampled.logprobs)
        self._scored = tuple(_fetched(rows) for rows in sampled.scored)
        self._taps = [{name: devices.fetch(rows) for name, rows in kept.items()} for kept in taps]
        self._arrived = devices.mark(sampled.tokens.device)

    def read(self) -> SampledMessage:
        """Wait for the device."""
        self._arrived()
        tokens = self._tokens.numpy().astype(np.int32)
        if self._seen and (tokens < 0).any():
            seen = np.concatenate([part.numpy() for part in self._seen])
            self._errors = self._looks.causes((tokens < 0).nonzero()[0].tolist(), seen) | self._errors
        return SampledMessage(
            tokens,
            None if self._logprobs is None else _message(self._logprobs),
            tuple(_message(rows) for rows in self._scored),
            self._errors,
            self._slow_calls,
            tuple({name: rows.numpy().copy() for name, rows in kept.items()} for kept in self._taps),
        )


def _rows(outputs: Mapping[str, Tensor], wanted: TapRows) -> dict[str, Tensor]:
    """Copies of some tokens' rows: the next step overwrites the outputs."""
    kept = {name: outputs[name].narrow(0, wanted.first, wanted.stop - wanted.first) for name in wanted.names}
    floating = {name: torch.float32 if rows.is_floating_point() else rows.dtype for name, rows in kept.items()}
    return {name: rows.to(floating[name], copy=True) for name, rows in kept.items()}


def _fetched(rows: LogprobRows) -> LogprobRows:
    return LogprobRows(*(devices.fetch(part) for part in rows))


def _message(rows: LogprobRows) -> Logprobs:
    values, ranks, best_values, best_ids = (part.numpy() for part in rows)
    return Logprobs(values, ranks.astype(np.int32), best_ids.astype(np.int32), best_values)
