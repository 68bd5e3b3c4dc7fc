"""Which tokens the penalized requests have had, kept on the device.

C penalized slots · R rows · V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bestiary.core.runtime import logits as rows_of
from bestiary.core.runtime.messages import Ints, Opened
from bestiary.core.runtime.slot_params import SlotParams


class TokenCounts:
    """Rows of counts for the slots that need them; there are as many as were ever needed at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seen = torch.zeros(0, 0, dtype=torch.bool, device=device)  # [C, V], of prompt and output
        self._output = torch.zeros(0, 0, dtype=torch.int32, device=device)  # [C, V], how often the output has each
        self._rows: dict[int, int] = {}  # of slots
        self._free: list[int] = []
        self._opened: dict[int, Opened] = {}  # not counted yet: the vocabulary is known with the first logits

    def open(self, opened: Opened) -> None:
        """A slot changed hands."""
        self._opened.pop(opened.slot, None)
        row = self._rows.pop(opened.slot, None)
        if row is not None:
            self._free.append(row)
        if opened.params.penalized:
            self._opened[opened.slot] = opened

    def penalized(self, logits: Tensor, slots: Ints, params: SlotParams) -> Tensor:
        """The logits [R, V] of these slots with their penalties applied."""
        for slot in [slot for slot in slots.tolist() if slot in self._opened]:
            self._count(self._opened.pop(slot), logits.shape[-1])
        wanted = params.penalizes[slots].nonzero()[0]
        if not len(wanted):
            return logits
        counts = torch.tensor([self._rows[slot] for slot in slots[wanted].tolist()], device=self._device)
        where = torch.from_numpy(slots[wanted].astype(np.int64)).to(self._device)
        numbers = params.numbers[where, 3:].float().unsqueeze(2).unbind(dim=1)
        seen, output = self._seen[counts], self._output[counts]
        if len(wanted) == len(logits):
            return rows_of.penalize(logits, seen, output, *numbers)
        rows = torch.from_numpy(wanted).to(self._device)
        return logits.index_copy(0, rows, rows_of.penalize(logits[rows], seen, output, *numbers))

    def add(self, slots: Ints, tokens: Tensor) -> None:
        """The slots' outputs go on with these tokens [R]; -1 adds nothing."""
        if not self._rows:
            return
        counted = [(row, self._rows[slot]) for row, slot in enumerate(slots.tolist()) if slot in self._rows]
        if not counted:
            return
        rows, counts = torch.tensor(counted, device=self._device).unbind(dim=1)
        chosen = tokens[rows]
        where = (counts, chosen.clamp(min=0))
        self._seen.index_put_(where, self._seen[where] | (chosen >= 0))
        self._output.index_put_(where, self._output[where] + (chosen >= 0).int())

    def _count(self, opened: Opened, vocabulary: int) -> None:
        if not self._free:
            self._grow(vocabulary)
        row = self._rows[opened.slot] = self._free.pop()
        tokens = torch.from_numpy(opened.tokens.astype(np.int64)).to(self._device)
        output = tokens[opened.prompt_length :]
        self._seen[row] = False
        self._seen[row, tokens] = True
        self._output[row] = 0
        self._output[row].index_add_(0, output, torch.ones_like(output, dtype=torch.int32))

    def _grow(self, vocabulary: int) -> None:
        """Twice as many rows."""
        have = len(self._seen)
        more = max(1, have)
        self._free.extend(range(have + more - 1, have - 1, -1))
        for name in ("_seen", "_output"):
            old: Tensor = getattr(self, name)
            fresh = torch.zeros(more, vocabulary, dtype=old.dtype, device=self._device)
            setattr(self, name, torch.cat((old, fresh)) if have else fresh)
