"""Log-probabilities as a request's user sees them, made of plain lists. Knows no tensor."""

from __future__ import annotations

from collections.abc import Sequence

from bestiary.core.outputs import Logprob, LogprobDict


def logprob_dict(
    token: int, value: float, rank: int, best_ids: Sequence[int], best_values: Sequence[float]
) -> LogprobDict:
    """The chosen token first, then the likeliest ones without it, without their texts.

    Args:
        token, value, rank: the chosen token, its log-probability, and its rank, 1 for the likeliest.
        best_ids, best_values: as many of the likeliest tokens as were asked for, the likeliest first.
    """
    entry: LogprobDict = {token: Logprob(value, rank)}
    for place, (other, amount) in enumerate(zip(best_ids, best_values, strict=True), start=1):
        entry.setdefault(other, Logprob(amount, place))
    return entry
