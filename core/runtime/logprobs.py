"""Log-probabilities of chosen and likeliest tokens under the model's own logits, before any sampling parameter."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bestiary.core.runtime.exact_rows import largest, log_probabilities

#: Rows whose float32 copy is made at a time: a step may have hundreds of rows of a large vocabulary.
ROWS_AT_A_TIME = 128


class LogprobRows(NamedTuple):
    """Of each of R rows, on the logits' device: the chosen token's log-probability and rank, and the K likeliest tokens.

    ``values`` [R] float32, ``ranks`` [R] int64 from 1, ``best_values`` [R, K] float32 in descending order,
    ``best_ids`` [R, K] int64. A rank is one more than the number of likelier tokens, so equal tokens share one.
    """

    values: Tensor
    ranks: Tensor
    best_values: Tensor
    best_ids: Tensor


def logprob_rows(logits: Tensor, chosen: Tensor, most: int) -> LogprobRows:
    """The chosen and the likeliest tokens of each row; nothing waits for the device.

    Args:
        logits: [R, V], the model's.
        chosen: [R] int64 token ids; a row with -1 gives numbers that mean nothing.
        most: K, how many of the likeliest tokens to give; 0 for none.
    """
    size = ROWS_AT_A_TIME
    parts = [_some(logits[i : i + size], chosen[i : i + size], most) for i in range(0, len(chosen), size)]
    if len(parts) == 1:
        return parts[0]
    return LogprobRows(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _some(logits: Tensor, chosen: Tensor, most: int) -> LogprobRows:
    values = log_probabilities(logits)
    own = values.gather(1, chosen.clamp(min=0).unsqueeze(1))
    best_values, best_ids = largest(values, most)
    return LogprobRows(own.squeeze(1), (values > own).sum(dim=-1) + 1, best_values, best_ids)
