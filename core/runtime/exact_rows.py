"""Sums and orders over a row of logits that are the same to the bit on one thread or many, alone or in a batch.

Shapes: R rows, V vocabulary. What a device adds up in fractions depends on the order it takes, and that on the number of rows.
Weights here are integers, which add up alike in any order, and equal values are told apart by their places.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: One, in units of a weight: 2¹⁹ tokens of the largest weight still fit int64. Less than half a unit is nothing.
ONE = 2**43


def units(weights: Tensor) -> Tensor:
    """Weights in 0 … 1 as int64 in units of 1 / ``ONE``. Of NaN nothing is promised."""
    return (weights * ONE).long()


def log_probabilities(logits: Tensor) -> Tensor:
    """The log-softmax of each row: [R, V] → [R, V] float32. A row with NaN or +inf is NaN."""
    shifted = torch.sub(logits.float(), logits.amax(dim=-1, keepdim=True))
    totals = [units(some.exp()).sum(dim=-1, keepdim=True) for some in torch.split(shifted, _at_a_time(shifted))]
    return shifted.sub_((torch.cat(totals).double() / ONE).log().float())


def largest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` largest of each row in descending order and their places, equal ones by place: [R, V] float32 → [R, count]."""
    found = [_largest(some, count) for some in torch.split(values, _at_a_time(values))]
    return torch.cat([best for best, _ in found]), torch.cat([places for _, places in found])


def _largest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    if not count:
        return values[:, :0], values[:, :0].long()
    # Which of several equal values topk gives is left open, so the last places go to the first of those equal to the last.
    last = values.topk(count, dim=-1).values[:, -1:]
    early = torch.arange(values.shape[-1], 0, -1, dtype=torch.float32, device=values.device)
    keys = torch.where(values > last, torch.inf, early.masked_fill(values != last, 0))
    places = keys.topk(count, dim=-1).indices.sort(dim=-1).values
    best, order = values.gather(1, places).sort(dim=-1, descending=True, stable=True)
    return best, places.gather(1, order)


def _at_a_time(rows: Tensor) -> int:
    """Rows whose copies a processor's cache holds; fresh memory would cost it more than the arithmetic."""
    return max(1, (2**16 if rows.device.type == "cpu" else 2**24) // rows.shape[-1])
