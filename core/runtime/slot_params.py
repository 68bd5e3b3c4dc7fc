"""How each slot's tokens are chosen: numbers on the device, and on the host who uses what.

S slots · R rows · V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bestiary.core.runtime.logits import Limits
from bestiary.core.runtime.messages import Ints
from bestiary.core.runtime.random_numbers import as_int64

if TYPE_CHECKING:
    from bestiary.core.token_params import Processor, TokenParams


class SlotParams:
    """Sampling parameters by slot.

    Attributes:
        numbers: [S, 6] float64: temperature, top_p, min_p, and the repetition, presence and frequency penalties.
        top_k, seeds: [S] int64.
        drawn: [S], on the host: the token is drawn, not the likeliest.
        penalizes: [S], on the host: some penalty changes the logits.
        changes: [S], on the host: the token is not simply the likeliest of the model's logits.
        processors: of the slots that have any.
    """

    def __init__(self, num_slots: int, device: torch.device) -> None:
        self.numbers = torch.zeros(num_slots, 6, dtype=torch.float64, device=device)
        self.top_k = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self.seeds = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self.drawn, self.penalizes, self.changes = (np.zeros(num_slots, bool) for _ in range(3))
        self.processors: dict[int, tuple[Processor | str, ...]] = {}
        self._limits: list[tuple[int, float]] = [(-1, 1.0)] * num_slots
        self._bias: dict[int, dict[int, float]] = {}

    def set(self, slot: int, params: TokenParams) -> None:
        """A request took the slot."""
        self.drawn[slot], self.penalizes[slot] = params.drawn, params.penalized
        self.changes[slot] = bool(params.drawn or params.penalized or params.logit_bias)
        self._limits[slot] = (params.top_k, params.top_p)
        self._bias.pop(slot, None)
        self.processors.pop(slot, None)
        if params.logit_bias:
            self._bias[slot] = dict(params.logit_bias)
        if params.logits_processors:
            self.processors[slot] = params.logits_processors
        if self.changes[slot]:
            numbers = (
                params.temperature,
                params.top_p,
                params.min_p,
                params.repetition_penalty,
                params.presence_penalty,
                params.frequency_penalty,
            )
            self.numbers[slot] = torch.tensor(numbers, dtype=torch.float64)
            self.top_k[slot], self.seeds[slot] = params.top_k, as_int64(params.seed)

    def limits(self, slots: Ints) -> Limits:
        """What the host knows of these slots' top_k and top_p."""
        return Limits.of(self._limits[slot] for slot in slots.tolist())

    def biased(self, logits: Tensor, slots: Ints) -> Tensor:
        """The logits [R, V] of these slots with their biases added."""
        bias = [
            (row, token, value)
            for row, slot in enumerate(slots.tolist())
            if slot in self._bias
            for token, value in self._bias[slot].items()
        ]
        if not bias:
            return logits
        rows, tokens, values = zip(*bias, strict=True)
        where = tuple(torch.tensor(ids, device=logits.device) for ids in (rows, tokens))
        return logits.index_put(where, torch.tensor(values, device=logits.device), accumulate=True)
