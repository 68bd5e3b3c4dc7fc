"""Decode steps as recorded graphs: one launch in place of hundreds.

A graph is recorded for a batch size and a width of the block tables when they are first met. A smaller batch runs in the next
larger graph, its rows filled up with the padding slot.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from bestiary.core import device as devices
from bestiary.core.program.bound import StepProgram
from bestiary.core.program.shapes import Sizes
from bestiary.core.runtime.inputs import StepInputs
from bestiary.core.runtime.messages import EMPTY, Ints, StepMessage

log = logging.getLogger("bestiary.graphs")

#: Blocks of the narrowest tables; each next width is twice that.
NARROWEST = 16


class DecodeGraphs:
    """Records and replays.

    Args:
        limits: the largest step.
    """

    def __init__(self, program: StepProgram, inputs: StepInputs, limits: Sizes, device: torch.device) -> None:
        program.reserve(limits)  # what is recorded must not move
        self._program, self._inputs, self._device = program, inputs, device
        self._sizes = batch_sizes(limits.sequences)
        self._recorder = devices.GraphRecorder(device)
        self._known: dict[Sizes, tuple[Callable[[], None], Mapping[str, Tensor]]] = {}
        self._usable = bool(inputs.store.groups) and program.graph_safe

    def __len__(self) -> int:
        """How many are recorded."""
        return len(self._known)

    def forward(self, step: StepMessage, beside: StepProgram | None = None) -> dict[str, Tensor] | None:
        """The outputs of a step that only decodes; None where it must run as a list of calls.

        Args:
            beside: runs the step as a list of calls, at the size that the recorded program would have run it at: the same
                kernels on the same shapes.
        """
        count = len(step.slots)
        if not self._usable or step.decodes != count or step.rows is not None:
            return None
        sizes = self._shape(count, step.longest)
        if beside is not None:
            self._show(step, sizes)
            self._inputs.decode(sizes.sequences)
            return {name: tensor[:count] for name, tensor in beside.run(sizes).items()}
        known = self._known.get(sizes)
        if known is None:
            known = self._record(sizes)
            if known is None:
                return None
        replay, outputs = known
        self._show(step, sizes)
        replay()
        return {name: tensor[:count] for name, tensor in outputs.items()}

    def _show(self, step: StepMessage, sizes: Sizes) -> None:
        self._inputs.change(step)
        self._inputs.show_decodes(self._padded(step.slots, sizes.sequences))

    def _shape(self, count: int, longest: int) -> Sizes:
        size = next(size for size in self._sizes if size >= count)
        smallest = min(group.block_size for group in self._inputs.store.groups)
        blocks = NARROWEST
        while blocks * smallest < longest:
            blocks *= 2
        widest = max(table.shape[1] for table in self._inputs.state.tables)
        return Sizes(size, size, size, 0 if blocks >= widest else blocks)

    def _padded(self, slots: Ints, size: int) -> Ints:
        if len(slots) == size:
            return slots
        padding = np.full(size - len(slots), self._inputs.state.padding, np.int32)
        return np.concatenate((slots, padding))

    def _record(self, sizes: Sizes) -> tuple[Callable[[], None], Mapping[str, Tensor]] | None:
        calls, outputs = self._program.bind(sizes)

        def run() -> None:
            self._inputs.decode(sizes.sequences)
            for call in calls:
                call()

        # Padding alone: recording runs the step, and nobody's state may advance by that.
        self._inputs.show_decodes(self._padded(EMPTY, sizes.sequences))
        try:
            replay = self._recorder.record(run)
        except Exception as error:
            log.warning("steps run without graphs: %s: %s", type(error).__name__, error)
            self._usable = False
            return None
        log.info("recorded a graph for %d sequences of up to %d blocks", sizes.sequences, sizes.blocks)
        self._known[sizes] = (replay, outputs)
        return self._known[sizes]


def batch_sizes(most: int) -> list[int]:
    """The sizes that graphs are recorded for: every one up to 4, then steps of about a quarter, and the largest.

    >>> batch_sizes(20)
    [1, 2, 3, 4, 8, 12, 16, 20]
    """
    sizes, size = [], 1
    while size < most:
        sizes.append(size)
        size += 1 if size < 4 else 4 if size < 32 else 8 if size < 64 else 16 if size < 256 else 32
    return [*sizes, most]
