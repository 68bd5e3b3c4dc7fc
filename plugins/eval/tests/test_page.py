"""The page in a browser: its scripts run, every figure has its points and intervals, nobody's text becomes markup."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import opened

from bestiary_eval.page import page
from bestiary_eval.report import EvalReport, Flip, Paired, TaskScore


def report(flips: list[Flip]) -> EvalReport:
    gained = sum(flip.gained for flip in flips)
    pair = Paired(
        value=0.5, stderr=0.05, low=0.4, high=0.6, difference=0.1, difference_low=-0.02, difference_high=0.22, p_value=0.1,
        gained=gained, lost=len(flips) - gained, changed=7, flips=flips,
    )  # fmt: skip
    right = {
        "version": "1", "metric": "acc", "filter": "none", "shots": 0, "count": 100, "higher_is_better": True, "value": 0.6,
        "stderr": 0.05, "low": 0.5, "high": 0.7, "interval": "wilson",
    }  # fmt: skip
    scores = [
        TaskScore(task="<b>birds", against=pair, **right),
        TaskScore(task="rivers", against=pair.model_copy(update={"flips": []}), **right),
        TaskScore(
            task="prose", against=None, **{**right, "metric": "perplexity", "value": 12.5, "interval": None, "low": None, "high": None}
        ),
    ]  # fmt: skip
    return EvalReport(
        model="a", against="b", scores=scores, max_seq_len=64, truncated=0, limit=None, seed=None, chat_template=False,
        seconds=1.0, against_seconds=2.0, versions={"bestiary": "1"},
    )  # fmt: skip


FLIPS = [
    Flip(document=3, text="<script>alert(1)</script>?", target="x", answer="x", against_answer="<i>", gained=True),
    Flip(document=4, text="why?", target="x", answer="y", against_answer="x", gained=False),
]


def test_flips_are_listed_and_the_lost_ones_marked() -> None:
    html = page(report(FLIPS)).html()
    assert "<script>alert" not in html and "&lt;script&gt;alert(1)&lt;/script&gt;?" in html
    assert html.count('<tr class="marked">') == 1
    assert html.split('<tr class="marked">')[1].startswith("<td>&lt;b&gt;birds acc</td><td>4</td>")
    assert "every item is right for both, or wrong for both" in page(report([])).html()


@pytest.mark.slow
def test_in_a_browser(tmp_path: Path) -> None:
    page(report(FLIPS)).write(tmp_path / "page.html")
    markup, said = opened(tmp_path / "page.html", tmp_path)
    assert said == []
    assert markup.count('class="main-svg"') >= 2
    assert markup.count('class="xerror"') + markup.count('class="errorbar"') >= 2 * 2 + 2
    assert "score (share of items)" in markup and "difference of scores" in markup and "&lt;b&gt;birds, acc" in markup
