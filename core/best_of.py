"""Which of several answers are returned."""

from __future__ import annotations

import math
from collections.abc import Sequence


def likeliest_answers(sums: Sequence[float], lengths: Sequence[int], n: int) -> list[int]:
    """Indices of the ``n`` answers with the greatest mean log-probability a token, best first.

    Args:
        sums: of each answer the sum of its tokens' log-probabilities; one that failed has -inf.
        lengths: of each answer the number of its tokens; an answer without any comes after those with some, and one that
            failed after all others.
    """
    means = [total / length if length else -math.inf for total, length in zip(sums, lengths, strict=True)]
    return sorted(range(len(means)), key=lambda index: (sums[index] == -math.inf, -means[index]))[:n]
