"""Tensor functions that remove tokens from rows of logits; every row's result depends on that row alone.

Shapes: R rows, V vocabulary, W = ceil(V / 32) words. Logits are float32; a removed token has logit -inf.
"""

from __future__ import annotations

import torch
from torch import Tensor


def keep_masked(logits: Tensor, masks: Tensor, rows: Tensor | None = None) -> Tensor:
    """Remove the tokens whose bits are 0 from some rows.

    Args:
        logits: [R, V].
        masks: [n, W] int32; bit ``token % 32`` of word ``token // 32`` is 1 for a token to keep.
        rows: [n] int64, the rows that ``masks`` are for, each once; None where there is a mask for every row, in order.
    """
    bits = torch.arange(32, dtype=torch.int32, device=masks.device)
    kept = ((masks.unsqueeze(-1) >> bits) & 1).flatten(1)[:, : logits.shape[-1]].bool()
    if rows is None:
        return logits.masked_fill(~kept, -torch.inf)
    return logits.index_copy(0, rows, logits[rows].masked_fill(~kept, -torch.inf))


def without(logits: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
    """Remove single tokens: for each i token ``tokens[i]`` from row ``rows[i]``.

    Args:
        logits: [R, V].
        rows, tokens: [N] int64, in any order; pairs may repeat.
    """
    return logits.index_put((rows, tokens), logits.new_full((), -torch.inf))
