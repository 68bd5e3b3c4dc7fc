"""Intervals of scores and of differences between paired scores; all of 95 %."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

#: Half the width of a 95 % interval in standard errors.
Z = 1.959963984540054


class Interval(NamedTuple):
    """From ``low`` to ``high``."""

    low: float
    high: float


def wilson(successes: int, count: int) -> Interval:
    """Of a proportion (Wilson 1927): also right near 0 and 1, and for few items.

    >>> "{:.4f} {:.4f}".format(*wilson(10, 10)), "{:.4f} {:.4f}".format(*wilson(5, 10))
    ('0.7225 1.0000', '0.2366 0.7634')
    """
    share, square = successes / count, Z * Z / count
    middle = share + square / 2
    half = Z * math.sqrt(share * (1 - share) / count + square / count / 4)
    return Interval(max(0.0, (middle - half) / (1 + square)), min(1.0, (middle + half) / (1 + square)))


def normal(value: float, error: float) -> Interval:
    """Of a value with a standard error."""
    return Interval(value - Z * error, value + Z * error)


def paired_proportions(gained: int, lost: int, count: int) -> Interval:
    """Of a difference between two proportions of the same items (Agresti and Min 2005): Wald's, with half an item added to
    each of the four cells, so that few or no changes don't give an interval without width.

    Args:
        gained, lost: items that only the second, only the first has right.

    >>> "{:.4f} {:.4f}".format(*paired_proportions(0, 0, 50)), "{:.4f} {:.4f}".format(*paired_proportions(8, 2, 50))
    ('-0.0377 0.0377', '-0.0056 0.2364')
    """
    total, more, fewer = count + 2, gained + 0.5, lost + 0.5
    middle = (more - fewer) / total
    error = math.sqrt((more + fewer) - (more - fewer) ** 2 / total) / total
    return Interval(max(-1.0, middle - Z * error), min(1.0, middle + Z * error))


def paired_means(differences: Sequence[float]) -> Interval:
    """Of a mean difference between paired values, by its standard error."""
    count = len(differences)
    mean = math.fsum(differences) / count
    if count < 2:
        return Interval(-math.inf, math.inf)
    variance = math.fsum((one - mean) ** 2 for one in differences) / (count - 1)
    return normal(mean, math.sqrt(variance / count))


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p of McNemar's test: how often a fair coin splits the changed items at least as unevenly.

    >>> mcnemar(0, 0), mcnemar(1, 9), mcnemar(5, 5)
    (1.0, 0.021484375, 1.0)
    """
    changed = gained + lost
    tail = sum(math.comb(changed, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**changed)
