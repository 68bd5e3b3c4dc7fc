"""Tensor functions on rows of logits; every row's result depends on that row alone.

Shapes: R rows, V vocabulary, K the largest top_k. Logits are float32, probabilities are summed in whole numbers, so that
no order of tokens decides anything. A removed token has logit -inf.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from bestiary.core.runtime.exact_rows import units

# Most top-p sets lie within this many tokens; only the rows where they don't pay for a sort of the vocabulary.
_NUCLEUS = 1024


def penalize(
    logits: Tensor, seen: Tensor, counts: Tensor, repetition: Tensor, presence: Tensor, frequency: Tensor
) -> Tensor:
    """Repetition (CTRL, arXiv:1909.05858), then frequency and presence penalties (OpenAI's definitions).

    Args:
        logits: [R, V] float32.
        seen: [R, V] bool, tokens of the prompt or the output: positive logits are divided by ``repetition``, others multiplied.
        counts: [R, V], how often the output has each token: ``frequency`` times that and, where any, ``presence`` is subtracted.
        repetition, presence, frequency: [R, 1] float32.
    """
    repeated = torch.where(logits > 0, logits / repetition, logits * repetition)
    logits = torch.where(seen, repeated, logits)
    return logits - frequency * counts - presence * (counts > 0)


class Limits(NamedTuple):
    """What the host knows of a batch's top_k and top_p, so that the device need not be asked.

    Args:
        most: the largest top_k of a row, 0 where no row has one.
        nucleus: some row has a top_p below 1.
        bounded: each of these has a top_k of at most 1024, so its top-p set surely lies within so many tokens.
    """

    most: int
    nucleus: bool
    bounded: bool

    @classmethod
    def of(cls, params: Iterable[tuple[int, float]]) -> Limits:
        """Of each row's (top_k, top_p)."""
        rows = list(params)
        below = [k for k, p in rows if p < 1.0]
        return cls(max((k for k, _ in rows if k > 0), default=0), bool(below), all(0 < k <= _NUCLEUS for k in below))


def keep_top(logits: Tensor, top_k: Tensor, top_p: Tensor, limits: Limits) -> Tensor:
    """Remove what is below each row's top_k and top_p; ties with the last kept token are kept.

    top_p acts on what top_k left, renormalized: the smallest set of likeliest tokens whose probabilities reach top_p. Nothing waits for the device, unless some row has a top_p without a top_k of at most 1024.

    Args:
        logits: [R, V] float32, temperature applied.
        top_k: [R] int64, -1 for no limit.
        top_p: [R] float64, 1.0 for no limit.
        limits: ``Limits.of`` these rows.
    """
    if limits.most:
        best = logits.topk(limits.most, dim=-1).values
        threshold = best.gather(1, (top_k - 1).clamp(min=0).unsqueeze(1))
        unlimited = (top_k <= 0).unsqueeze(1)
        logits = logits.masked_fill((logits < threshold) & ~unlimited, -torch.inf)
    if limits.nucleus:
        threshold = _nucleus_threshold(logits, top_p.unsqueeze(1), within=limits.bounded)
        below = (logits < threshold) & (top_p < 1.0).unsqueeze(1)
        logits = logits.masked_fill(below, -torch.inf)
    return logits


def _nucleus_threshold(logits: Tensor, top_p: Tensor, *, within: bool = False) -> Tensor:
    """The smallest kept logit of each row's top-p set, [R, 1].

    ``within``: of each row that has a top_p at most ``_NUCLEUS`` tokens are left, ties with the last of them apart, so
    the threshold is found among these, or is the last.
    """
    highest = logits.amax(dim=-1, keepdim=True)
    total = units((logits - highest).double().exp()).sum(dim=-1, keepdim=True)
    width = min(_NUCLEUS, logits.shape[-1])
    best = logits.topk(width, dim=-1).values
    threshold, found = _threshold_among(best, highest, total, top_p)
    # A row without a top_p has 1.0, which its sums may never reach.
    found = found | (top_p.squeeze(1) >= 1.0)
    if not within and width < logits.shape[-1] and not bool(found.all()):
        rows = (~found).nonzero().squeeze(1)
        whole = logits[rows].sort(dim=-1, descending=True).values
        rest, _ = _threshold_among(whole, highest[rows], total[rows], top_p[rows])
        threshold = threshold.index_copy(0, rows, rest)
    return threshold


def _threshold_among(best: Tensor, highest: Tensor, total: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor]:
    """The top-p threshold given the likeliest logits in order, and per row whether they reach top_p."""
    reached = units((best - highest).double().exp()).cumsum(dim=-1)
    kept = (reached < top_p * total).sum(dim=-1, keepdim=True)
    found = kept.squeeze(1) < best.shape[-1]
    return best.gather(1, kept.clamp(max=best.shape[-1] - 1)), found


def draw(logits: Tensor, min_p: Tensor, uniform: Tensor) -> Tensor:
    """One token a row by inverting the cumulative distribution in the order of token ids.

    Args:
        logits: [R, V] float32, temperature applied.
        min_p: [R, 1] float64; tokens less likely than ``min_p`` times the likeliest are removed.
        uniform: [R, 1] float64, strictly between 0 and 1.

    Returns:
        [R] int64; -1 for a row without a finite distribution (NaN, +inf, or nothing left).
    """
    highest = logits.amax(dim=-1, keepdim=True)
    weights = (logits - highest).double().exp()
    reached = units(weights.masked_fill(weights < min_p, 0.0)).cumsum(dim=-1)
    total = reached[:, -1:]
    target = (uniform * total).long().minimum(total - 1)
    # right=True finds the first token whose cumulative weight exceeds the number, so never one of weight 0.
    token = torch.searchsorted(reached, target, right=True).squeeze(1)
    return torch.where(torch.isfinite(highest.squeeze(1)), token, -1)


def likeliest(logits: Tensor) -> Tensor:
    """[R] int64 argmax; -1 for a row whose largest logit is NaN or infinite."""
    value, token = logits.max(dim=-1)
    return torch.where(torch.isfinite(value), token, -1)
