"""Two targets, figure by figure: how many times the other's is the first one's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pydantic import Field

from bestiary.core.bench.figures import Spread
from bestiary.core.bench.measure import Run
from bestiary.core.reports.schema import ReportPart


class Compared(NamedTuple):
    """A figure that is compared: its name for people, and whether more of it is better."""

    title: str
    more_is_better: bool


COMPARED: dict[str, Compared] = {
    "output_tokens_per_s": Compared("out tok/s", True),
    "total_tokens_per_s": Compared("total tok/s", True),
    "requests_per_s": Compared("req/s", True),
    "user_tokens_per_s": Compared("user tok/s", True),
    "goodput_per_s": Compared("good req/s", True),
    "ttft_p50_s": Compared("TTFT p50", False),
    "ttft_p99_s": Compared("TTFT p99", False),
    "itl_mean_s": Compared("ITL mean", False),
    "itl_p50_s": Compared("ITL p50", False),
    "itl_p99_s": Compared("ITL p99", False),
    "total_p50_s": Compared("total p50", False),
    "step_p50_s": Compared("step p50", False),
}


class Comparison(ReportPart):
    """One figure of one load. Each repeat ran on both targets with the same requests, and gives one ratio."""

    label: str = Field(description="the load")
    figure: str = Field(description="name of the figure")
    target: str = Field(description="the other target")
    against: str = Field(description="the first target")
    ratio: Spread | None = Field(
        description="the other's figure as a multiple of the first one's, over the repeats that give a ratio; null: none does"
    )
    repeats: int = Field(description="repeats that ran")
    left_out: int = Field(
        description="repeats that give no ratio: the first one's figure is 0 in them, or one of the two has none"
    )
    more_is_better: bool = Field(description="a ratio above 1 speaks for the other")
    clear: bool = Field(
        description="all repeats, of at least two, give a ratio and agree on which of the two is better"
    )


def comparisons(runs: Sequence[Run], names: Sequence[str]) -> list[Comparison]:
    """Of the two targets named; none of fewer."""
    if len(names) < 2:
        return []
    first, other = names
    found = []
    for label in dict.fromkeys(run.point.label for run in runs):
        for figure, about in COMPARED.items():
            pairs = _pairs([run for run in runs if run.point.label == label], figure, first, other)
            if all(any(value is not None for value in values) for values in zip(*pairs, strict=True)):
                ratios = [two / one for one, two in pairs if one and two is not None]
                agree = bool(ratios) and (min(ratios) > 1 or max(ratios) < 1)
                found.append(
                    Comparison(
                        label=label,
                        figure=figure,
                        target=other,
                        against=first,
                        ratio=Spread.of(ratios) if ratios else None,
                        repeats=len(pairs),
                        left_out=len(pairs) - len(ratios),
                        more_is_better=about.more_is_better,
                        clear=agree and len(ratios) == len(pairs) > 1,
                    )
                )
    return found


def _pairs(runs: Sequence[Run], figure: str, first: str, other: str) -> list[tuple[float | None, float | None]]:
    """The figure of both, of each repeat."""
    values: dict[tuple[int, str], float | None] = {
        (run.repeat, run.target.about.name): getattr(run.figures, figure) for run in runs
    }
    repeats = sorted({run.repeat for run in runs})
    return [(values.get((repeat, first)), values.get((repeat, other))) for repeat in repeats]
