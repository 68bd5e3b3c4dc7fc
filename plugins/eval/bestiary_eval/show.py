"""Scores in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from bestiary.tools import table

from .report import EvalReport, Paired, TaskScore

_SHOWN_FLIPS = 10


def show(report: EvalReport) -> None:
    """A table of scores, one of paired differences, and the items that flipped."""
    table(*scores(report))
    if report.against is None:
        return
    print(f"\n{report.model} against {report.against}, paired by item")
    table(*differences(report))
    found = flips(report)
    if found:
        print(f"\nflipped: right for one of the two only ({len(found)})")
        table(FLIPS, [tuple(cell[:60] for cell in row) for row in found[:_SHOWN_FLIPS]])
        if len(found) > _SHOWN_FLIPS:
            print(f"and {len(found) - _SHOWN_FLIPS} more: --json and --html have all")


def cut(report: EvalReport) -> str:
    """What was lost of prompts; empty: nothing."""
    if not report.truncated:
        return ""
    return (
        f"{report.truncated} requests were longer than the {report.max_seq_len} tokens of --max-seq-len and lost their beginning: "
        "the scores are of what was left"
    )


FLIPS = ("task", "item", "right", "model", "against", "question")


def scores(report: EvalReport) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and rows of the scores."""
    heads = ("task", "shots", "metric", "items", "score", "stderr", "95 % interval")
    rows: list[tuple[str, ...]] = [
        (
            one.task, "-" if one.shots is None else str(one.shots), metric(one), str(one.count),
            f"{one.value:.4f}", "-" if one.stderr is None else f"{one.stderr:.4f}", between(one.low, one.high),
        )
        for one in report.scores
    ]  # fmt: skip
    return heads, rows


def differences(report: EvalReport) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and rows of the paired differences."""
    heads = ("task", "metric", "model", "against", "difference", "95 % interval", "McNemar p", "gained", "lost", "other answers")  # fmt: skip
    rows: list[tuple[str, ...]] = [
        (
            one.task, metric(one), f"{one.value:.4f}", f"{pair.value:.4f}", f"{pair.difference:+.4f}",
            between(pair.difference_low, pair.difference_high), "-" if pair.p_value is None else f"{pair.p_value:.3g}",
            *_counts(pair),
        )
        for one in report.scores
        if (pair := one.against) is not None
    ]  # fmt: skip
    return heads, rows


def _counts(pair: Paired) -> Sequence[str]:
    decided = pair.p_value is not None
    changed = "-" if pair.changed is None else str(pair.changed)
    return (str(pair.gained) if decided else "-", str(pair.lost) if decided else "-", changed)


def flips(report: EvalReport) -> list[tuple[str, ...]]:
    """A row for each flipped item of each score."""
    return [
        (one.task if len(report.scores) == 1 else f"{one.task} {one.metric}", str(flip.document), flip.target, flip.answer,
         flip.against_answer, flip.text)
        for one in report.scores
        if one.against is not None
        for flip in one.against.flips
    ]  # fmt: skip


def metric(one: TaskScore) -> str:
    """The metric's name, with its filter where there is one."""
    return one.metric if one.filter in ("none", "") else f"{one.metric} ({one.filter})"


def between(low: float | None, high: float | None) -> str:
    """An interval for people; a dash where there is none."""
    return "-" if low is None or high is None else f"{low:.4f} … {high:.4f}"
