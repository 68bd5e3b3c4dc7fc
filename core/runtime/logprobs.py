"""Log-probabilities of chosen and likeliest tokens under the model's own logits, before any sampling parameter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bestiary.core.outputs import Logprob, LogprobDict
from bestiary.core.runtime.exact_rows import largest, log_probabilities

# Rows whose float32 copy is made at a time; a prompt's chunk may have thousands of rows of a large vocabulary.
_ROWS = 128


def logprobs(logits: Tensor, chosen: Sequence[int], count: Sequence[int]) -> list[LogprobDict]:
    """Per row the chosen token and the ``count`` likeliest ones, without their texts.

    Args:
        logits: [R, V], the model's.
        chosen: per row a token id.
        count: per row how many of the likeliest tokens to give.
    """
    out: list[LogprobDict] = []
    for start in range(0, len(chosen), _ROWS):
        rows = slice(start, start + _ROWS)
        out += _some(logits[rows], chosen[rows], count[rows])
    return out


def _some(logits: Tensor, chosen: Sequence[int], count: Sequence[int]) -> list[LogprobDict]:
    values = log_probabilities(logits)
    ids = torch.tensor(chosen, device=logits.device).unsqueeze(1)
    own = values.gather(1, ids)
    own_values, own_ranks = own.squeeze(1).tolist(), ((values > own).sum(dim=-1) + 1).tolist()
    most = max(count)
    best_values, best_ids = (part.tolist() for part in largest(values, most))
    out: list[LogprobDict] = []
    for row, token in enumerate(chosen):
        entry: LogprobDict = {token: Logprob(own_values[row], own_ranks[row])}
        pairs = zip(best_ids[row][: count[row]], best_values[row], strict=False)
        for rank, (other, value) in enumerate(pairs, start=1):
            entry.setdefault(other, Logprob(value, rank))
        out.append(entry)
    return out
