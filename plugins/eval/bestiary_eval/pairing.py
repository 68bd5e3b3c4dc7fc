"""From one or two runs to the figures of a report: intervals, paired differences, items that flipped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from bestiary import DataError

from . import statistics
from .choices import Choices
from .report import Flip, Paired, TaskScore
from .run import Item, Run, Score

_FLIPS_TEXT, _ANSWER_TEXT = 300, 100
_FAULT = "the task makes other items each time: leave it out, or give it a seed of its own"


class _Figures(NamedTuple):
    """A score's items as numbers, None where they are none, and its interval."""

    values: Sequence[float] | None
    right_or_wrong: bool
    kind: Literal["wilson", "normal"] | None
    low: float | None
    high: float | None


def task_scores(run: Run, other: Run | None) -> list[TaskScore]:
    """Every score of ``run``, paired with the ``other``'s.

    Raises:
        DataError: the two were not asked the same items.
    """
    theirs = {} if other is None else {(one.task, one.metric, one.filter): one for one in other.scores}
    found = []
    for score in run.scores:
        figures = _figures(score)
        against = theirs.get((score.task, score.metric, score.filter))
        if other is not None and against is None:
            raise DataError("E-EVAL-PAIRS", f"task {score.task}", f"the other model has no {score.metric}", hint=_FAULT)
        found.append(
            TaskScore(
                task=score.task,
                version=score.version,
                metric=score.metric,
                filter=score.filter,
                shots=score.shots,
                count=score.count,
                higher_is_better=score.higher_is_better,
                value=score.value,
                stderr=score.error,
                low=figures.low,
                high=figures.high,
                interval=figures.kind,
                against=None if against is None else _paired(score, figures, against),
            )
        )
    return found


def _figures(score: Score) -> _Figures:
    values: Any = [item.values.get(score.metric) for item in score.items]
    if not values or not all(isinstance(one, bool | int | float) for one in values):
        values = None
    elif not math.isclose(math.fsum(values) / len(values), score.value, rel_tol=1e-9, abs_tol=1e-12):
        values = None  # the metric is no mean over items
    binary = values is not None and all(one in (0, 1) for one in values)
    if values is not None and binary:
        return _Figures(values, True, "wilson", *statistics.wilson(round(sum(values)), len(values)))
    if score.error is None or not math.isfinite(score.error):
        return _Figures(values, False, None, None, None)
    return _Figures(values, False, "normal", *statistics.normal(score.value, score.error))


def _paired(score: Score, mine: _Figures, other: Score) -> Paired:
    theirs = _figures(other)
    pairs = _pairs(score, other)
    gained = lost = 0
    interval: statistics.Interval | None = None
    if mine.values is not None and theirs.values is not None:
        if mine.right_or_wrong and theirs.right_or_wrong:
            gained = sum(a > b for a, b in zip(mine.values, theirs.values, strict=True))
            lost = sum(a < b for a, b in zip(mine.values, theirs.values, strict=True))
            interval = statistics.paired_proportions(gained, lost, len(pairs))
        elif len(pairs) > 1:
            differences = [a - b for a, b in zip(mine.values, theirs.values, strict=True)]
            interval = statistics.paired_means(differences)
    counted = mine.right_or_wrong and theirs.right_or_wrong
    return Paired(
        value=other.value,
        stderr=other.error,
        low=theirs.low,
        high=theirs.high,
        difference=score.value - other.value,
        difference_low=interval.low if interval else None,
        difference_high=interval.high if interval else None,
        p_value=statistics.mcnemar(gained, lost) if counted else None,
        gained=gained,
        lost=lost,
        changed=_changed(score.metric, pairs),
        flips=_flips(score.metric, pairs) if counted else [],
    )


def _pairs(score: Score, other: Score) -> list[tuple[Item, Item]]:
    pairs = list(zip(score.items, other.items, strict=False))
    same = all(a.document == b.document and a.digest == b.digest for a, b in pairs)
    if len(score.items) != len(other.items) or not same:
        found = f"{len(score.items)} and {len(other.items)} items" + ("" if same else " that differ")
        raise DataError(
            "E-EVAL-PAIRS", f"task {score.task}", "the two were not asked the same items", found=found, hint=_FAULT
        )
    return pairs


def _changed(metric: str, pairs: Sequence[tuple[Item, Item]]) -> int | None:
    """Items with different answers; None where there are no answers."""
    if not any(metric in one.answer for pair in pairs for one in pair):
        return None
    return sum(a.answer.get(metric) != b.answer.get(metric) for a, b in pairs)


def _flips(metric: str, pairs: Sequence[tuple[Item, Item]]) -> list[Flip]:
    return [
        Flip(
            document=a.document,
            text=_question(a.logged),
            target=_target(a if a.values[metric] > b.values[metric] else b, metric)[:_ANSWER_TEXT],
            answer=a.answer[metric][:_ANSWER_TEXT],
            against_answer=b.answer[metric][:_ANSWER_TEXT],
            gained=a.values[metric] > b.values[metric],
        )
        for a, b in pairs
        if a.values[metric] != b.values[metric]
    ]


def _question(logged: Mapping[str, Any]) -> str:
    choices, document = Choices.of(logged), logged["doc"]
    names = ("question", "query", "ctx") if isinstance(document, dict) else ()
    named = next((document[name] for name in names if document.get(name)), None)
    whole = choices.question if choices and choices.question else str(logged["arguments"][0][0])
    text = named if isinstance(named, str) else whole[-_FLIPS_TEXT:]
    return " ".join(text.split())[:_FLIPS_TEXT]


def _target(right: Item, metric: str) -> str:
    """The right answer in words where the target is the number of a choice, or tells nothing of it; ``right`` was right."""
    target, choices = right.logged["target"], Choices.of(right.logged)
    if choices and choices.question:  # the target is what follows all of them
        return right.answer[metric]
    targets = target if isinstance(target, list) else [target]
    if choices and targets and all(_is_index(one, len(choices.texts)) for one in targets):
        return " or ".join(choices.texts[one] for one in targets)
    return " ".join(str(target).split())


def _is_index(target: object, count: int) -> bool:
    return isinstance(target, int) and not isinstance(target, bool) and 0 <= target < count
