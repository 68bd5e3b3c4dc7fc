"""A conformance report as text: checks down, configs across, in a hundred columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from bestiary.core.conformance.model_run import Check, Report

_MARKS = {"passed": "ok", "failed": "FAIL", "refused": "no", "waived": "waive", "none": "-", "short": "."}
_LEGEND = {
    "refused": "no: the config can't be divided so, and the build says why",
    "none": "-: nothing to check",
    "short": ".: left to the long form",
}


def table(report: Report, width: int = 100) -> str:
    """The report in words, to be pasted into a pull request."""
    return "\n".join(
        [*_head(report), "", *_grid(report, width), "", *_legend(report), *_remarks(report, width), _verdict(report)]
    )


def _head(report: Report) -> Iterator[str]:
    versions = ", ".join(f"{name} {said}" for name, said in report.environment.items() if name != "platform")
    yield f"{report.model}: {report.distribution} {report.version}, {'long' if report.long else 'short'} form"
    yield f"{versions}, {report.environment['platform']}; reference: {report.reference}"


def _grid(report: Report, width: int) -> Iterator[str]:
    names = list(dict.fromkeys(check.check for check in report.checks))
    by_place = {(check.check, check.config): check for check in report.checks}
    first = max(len(_title(name)) for name in names)
    allowed = {name: _tolerance([by_place.get((name, config)) for config in report.configs]) for name in names}
    numbers = [str(number) for number in range(1, len(report.configs) + 1)]
    cells = {name: [_cell(by_place.get((name, config))) for config in report.configs] for name in names}
    column = max(len(cell) for row in cells.values() for cell in row)
    at_once = max(1, (width - first - 9) // (column + 1))
    for start in range(0, len(numbers), at_once):
        part = slice(start, start + at_once)
        if start:
            yield ""
        yield f"{'':{first}} {'allowed':>8} " + " ".join(number.rjust(column) for number in numbers[part])
        for name in names:
            row = " ".join(cell.rjust(column) for cell in cells[name][part])
            yield f"{_title(name):{first}} {allowed[name]:>8} {row}".rstrip()
    yield ""
    yield from _wrapped([f"{number} {name}" for number, name in zip(numbers, report.configs, strict=True)], width)


def _title(check: str) -> str:
    return check.removeprefix("test_").replace("_", " ")


def _tolerance(checks: Sequence[Check | None]) -> str:
    found = [check.tolerance for check in checks if check is not None and check.tolerance is not None]
    return f"{max(found):.3g}" if found else ""


def _cell(check: Check | None) -> str:
    if check is None:
        return ""
    if check.outcome == "passed" and check.error is not None:
        # A ratio of about one reads better as such.
        return f"{check.error:.2f}" if (check.tolerance or 0) >= 0.1 else f"{check.error:.0e}".replace("e-0", "e-")
    return _MARKS[check.outcome]


def _wrapped(words: Sequence[str], width: int) -> Iterator[str]:
    line = ""
    for word in words:
        if line and len(line) + 3 + len(word) > width:
            yield line
            line = ""
        line = f"{line} · {word}" if line else word
    yield line


def _legend(report: Report) -> Iterator[str]:
    seen = {check.outcome for check in report.checks}
    for outcome, text in _LEGEND.items():
        if outcome in seen:
            yield text
    tokens = sum(check.tokens or 0 for check in report.checks)
    ties = sum(check.ties or 0 for check in report.checks)
    if tokens:
        yield f"numbers: the largest error; {ties} ties in {tokens} greedy tokens"


def _remarks(report: Report, width: int) -> Iterator[str]:
    """Waivers and refusals, each reason once with its configs; then failures."""
    for outcome in ("waived", "refused", "failed"):
        reasons: dict[tuple[str, str], list[str]] = {}
        for check in report.checks:
            if check.outcome == outcome:
                reasons.setdefault((check.check, check.text), []).append(check.config)
        for (name, text), configs in reasons.items():
            where = "all configs" if len(configs) == len(report.configs) else ", ".join(configs)
            for line in f"{outcome}: {_title(name)} ({where}): {text}".splitlines():
                yield from textwrap.wrap(line, width, subsequent_indent="    ") or [""]


def _verdict(report: Report) -> str:
    counts: dict[str, int] = {}
    for check in report.checks:
        counts[check.outcome] = counts.get(check.outcome, 0) + 1
    took = sum(check.seconds for check in report.checks)
    words = {"none": "with nothing to check", "short": "left to the long form"}
    parts = ", ".join(f"{counts[name]} {words.get(name, name)}" for name in _MARKS if name in counts)
    return f"{parts}; {took:.0f} s"
