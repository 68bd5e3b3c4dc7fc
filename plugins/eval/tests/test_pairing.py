"""Every figure of a pair against scipy and counts by hand, and the cells in which a reader finds it."""

from __future__ import annotations

import statistics as means
from collections.abc import Sequence

import pytest
from scipy import stats

from bestiary_eval.page import page
from bestiary_eval.pairing import task_scores
from bestiary_eval.report import EvalReport, TaskScore
from bestiary_eval.run import Item, Run, Score
from bestiary_eval.show import FLIPS, differences, flips, scores

Z = 1.959963984540054
MINE = [1, 1, 1, 1, 1, 0, 0, 1, 0, 1]
THEIRS = [1, 0, 0, 0, 1, 0, 0, 1, 1, 0]
LENGTHS = [0.5, 2.0, 3.25, 1.0, 4.5]
OTHER_LENGTHS = [1.5, 1.0, 0.25, 2.0, 2.5]


def score(values: Sequence[float], who: str, metric: str, error: float) -> Score:
    items = [
        Item(
            document=number,
            digest=f"digest {number}",
            values={metric: value},
            answer={metric: f"{who} {number}" if number % 5 else "the same"},
            logged={
                "doc": {"question": f"question {number}?"},
                "target": "right",
                "arguments": [["prompt"]],
                "filtered_resps": ["said"],
            },
        )
        for number, value in enumerate(values)
    ]
    return Score(
        task="birds", version="1", metric=metric, filter="none", shots=0, count=len(items), higher_is_better=True,
        value=means.fmean(values), error=error, items=items,
    )  # fmt: skip


def paired(mine: Sequence[float], theirs: Sequence[float], metric: str) -> TaskScore:
    runs = [
        Run(scores=[score(values, who, metric, error)], seconds=1.0, logged={})
        for values, who, error in ((mine, "ours", 0.11), (theirs, "theirs", 0.13))
    ]
    (one,) = task_scores(*runs)
    return one


def test_right_and_wrong() -> None:
    one = paired(MINE, THEIRS, "acc")
    pair = one.against
    assert pair is not None
    assert (one.value, one.stderr, pair.value, pair.stderr) == (0.7, 0.11, 0.4, 0.13)
    assert (pair.gained, pair.lost) == (4, 1) and pair.difference == pytest.approx(0.3)
    for low, high, right in ((one.low, one.high, 7), (pair.low, pair.high, 4)):
        assert (low, high) == pytest.approx(tuple(stats.binomtest(right, 10).proportion_ci(method="wilson")))
    assert pair.p_value == pytest.approx(stats.binomtest(4, 5).pvalue)
    gain, loss = 4.5 / 12, 1.5 / 12  # half an item more in each of the four cells
    half = Z * ((gain + loss - (gain - loss) ** 2) / 12) ** 0.5
    assert (pair.difference_low, pair.difference_high) == pytest.approx((gain - loss - half, gain - loss + half))
    assert pair.changed == 8, "four answers in five are other ones, whether they flip or not"
    assert [(flip.document, flip.gained) for flip in pair.flips] == [
        (1, True),
        (2, True),
        (3, True),
        (8, False),
        (9, True),
    ]
    first = pair.flips[0]
    assert (first.answer, first.against_answer, first.text) == ("ours 1", "theirs 1", "question 1?")


def test_other_values() -> None:
    one = paired(LENGTHS, OTHER_LENGTHS, "length")
    pair = one.against
    assert pair is not None
    assert (one.low, one.high) == pytest.approx((one.value - Z * 0.11, one.value + Z * 0.11))
    assert (pair.low, pair.high) == pytest.approx((pair.value - Z * 0.13, pair.value + Z * 0.13))
    apart = [a - b for a, b in zip(LENGTHS, OTHER_LENGTHS, strict=True)]
    assert pair.difference == pytest.approx(means.fmean(apart)) and pair.difference > 0
    half = Z * stats.sem(apart)
    expected = (pair.difference - half, pair.difference + half)
    assert (pair.difference_low, pair.difference_high) == pytest.approx(expected)
    assert (pair.p_value, pair.gained, pair.lost, pair.flips) == (None, 0, 0, [])


def test_the_tables_and_the_plots_say_each_figure_where_it_belongs() -> None:
    one = paired(MINE, THEIRS, "acc")
    pair = one.against
    assert pair is not None
    report = EvalReport(
        model="ours", against="theirs", scores=[one], max_seq_len=64, truncated=0, limit=None, seed=None,
        chat_template=False, seconds=1.0, against_seconds=2.0, versions={},
    )  # fmt: skip
    ((row,), (heads, (cells,))) = (scores(report)[1], differences(report))
    assert row[4:] == ("0.7000", "0.1100", f"{one.low:.4f} … {one.high:.4f}")
    found = dict(zip(heads, cells, strict=True))
    assert (found["model"], found["against"], found["difference"]) == ("0.7000", "0.4000", "+0.3000")
    assert found["95 % interval"] == f"{pair.difference_low:.4f} … {pair.difference_high:.4f}"
    assert (found["McNemar p"], found["gained"], found["lost"], found["other answers"]) == ("0.375", "4", "1", "8")
    said = dict(zip(FLIPS, flips(report)[0], strict=True))
    assert (said["item"], said["right"], said["model"], said["against"]) == ("1", "right", "ours 1", "theirs 1")
    html = page(report).html()
    for value, low, high in (
        (one.value, one.low, one.high),
        (pair.difference, pair.difference_low, pair.difference_high),
    ):
        assert low is not None and high is not None
        assert f'"array":[{high - value!r}],"arrayminus":[{value - low!r}]' in html
