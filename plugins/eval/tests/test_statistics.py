"""Intervals against what scipy and textbooks say, and their behaviour at the edges."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from bestiary_eval.statistics import mcnemar, paired_means, paired_proportions, wilson


@pytest.mark.parametrize(("right", "count"), [(0, 1), (0, 50), (12, 50), (50, 50), (777, 1000)])
def test_wilson(right: int, count: int) -> None:
    expected = stats.binomtest(right, count).proportion_ci(method="wilson")
    assert wilson(right, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (0, 1), (3, 12), (7, 7), (600, 680)])
def test_mcnemar(gained: int, lost: int) -> None:
    expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar(gained, lost) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(gained, lost) == mcnemar(lost, gained)


def test_paired_means() -> None:
    values = [0.5, -1.0, 2.0, 0.25]
    low, high = paired_means(values)
    error = stats.sem(values)
    assert (low + high) / 2 == pytest.approx(sum(values) / 4)
    assert (high - low) / 2 == pytest.approx(1.959963984540054 * error)
    assert paired_means([0.0] * 5) == (0.0, 0.0)
    assert paired_means([1.0]) == (-math.inf, math.inf)


def test_paired_proportions_cover_what_they_promise() -> None:
    """The true difference lies within in about 95 % of all outcomes, computed exactly for 40 items."""
    gain, loss, count, covered = 0.15, 0.05, 40, 0.0
    for gained in range(count + 1):
        for lost in range(count + 1 - gained):
            low, high = paired_proportions(gained, lost, count)
            chance = stats.multinomial.pmf([gained, lost, count - gained - lost], count, [gain, loss, 1 - gain - loss])
            covered += chance * (low <= gain - loss <= high)
    assert 0.93 < covered < 0.98
    assert paired_proportions(5, 5, 20) == pytest.approx([-one for one in reversed(paired_proportions(5, 5, 20))])
