"""What functions on rows of logits must give, row by row and in lists."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bestiary.core.outputs import LogprobDict
from bestiary.core.runtime.exact_rows import units
from bestiary.core.runtime.logprob_dicts import logprob_dict
from bestiary.core.runtime.logprobs import LogprobRows, logprob_rows


def keep_top_listed(logits: Tensor, top_k: Sequence[int], top_p: Sequence[float]) -> Tensor:
    """Each row's ``top_k``, -1 for none, then its ``top_p`` of what that left; ties with the last kept token are kept."""
    rows = [_kept(row, k, p) for row, k, p in zip(logits, top_k, top_p, strict=True)]
    return torch.stack(rows)


def _kept(row: Tensor, k: int, p: float) -> Tensor:
    ordered = row.sort(descending=True).values
    if k > 0:
        row = row.masked_fill(row < ordered[k - 1], -torch.inf)
        ordered = row.sort(descending=True).values
    if p < 1.0:
        reached = units((ordered - ordered[0]).double().exp()).cumsum(0)
        short = int((reached < reached[-1] * torch.tensor(p, dtype=torch.float64)).sum())
        row = row.masked_fill(row < ordered[min(short, len(row) - 1)], -torch.inf)
    return row


def listed(rows: LogprobRows, chosen: Sequence[int], count: Sequence[int]) -> list[LogprobDict]:
    """Per row the chosen token and the ``count`` likeliest ones."""
    values, ranks, best_values, best_ids = (part.tolist() for part in rows)
    return [
        logprob_dict(token, values[row], ranks[row], best_ids[row][: count[row]], best_values[row][: count[row]])
        for row, token in enumerate(chosen)
    ]


def logprobs_listed(logits: Tensor, chosen: Sequence[int], count: Sequence[int]) -> list[LogprobDict]:
    """The same of logits ``[R, V]``."""
    return listed(logprob_rows(logits, torch.tensor(chosen, dtype=torch.int64), max(count)), chosen, count)
