"""A comparison as lines for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from bestiary.core.diff.arguments import plainly
from bestiary.core.diff.compare import DECODES, Row
from bestiary.core.diff.failures import Failure
from bestiary.core.diff.measure import FACTORS
from bestiary.core.diff.run import Result

#: Models of more layers are folded: of each place the worst layer.
FOLDED = 4
#: How many of the tensors that are out of tolerance are shown one by one.
SHOWN = 8

HEADINGS = ("tensor", "op=kernel", "max error", "relative", "allowed", "cosine", "accumulated", "step", "")
BISECTION = ("changed", "own error / allowed", "", "first wrong then")
COSTS = ("quantized alone", "logits' error")
STRANGE = ("quantized weight", "method", "of it", "times as far as the method makes it")
SPOILED = ("op=kernel", "changes against its declaration", "calls", "step")


def number(value: float) -> str:
    """Three digits.

    >>> number(0.000123456), number(float("inf")), number(0)
    ('1.23e-04', 'inf', '0')
    """
    return "0" if value == 0 else f"{value:.2e}" if math.isfinite(value) else str(value)


def heading(result: Result) -> list[str]:
    """What was compared, and how."""
    counts = [len(prompt.tokens) for prompt in result.prompts]
    name, factor = str(result.coarsest).removeprefix("torch."), FACTORS[result.coarsest]
    lengths = f"{counts[0]}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    few_bits = [f"few bits   {result.few_bits}"] if result.few_bits else []
    instead = [f"raised     {_went_on(failure)}" for failure in result.failures]
    return [
        f"ours       {result.ours}, on {result.device}",
        f"against    {result.against}",
        f"tokens     {len(counts)} prompt{'s' if len(counts) > 1 else ''} of {lengths} tokens, the last {DECODES} one by one",
        f"tolerance  {factor:g} times what one {name} rounding of what a tensor is made of, and its own, does to it",
        *few_bits,
        *instead,
    ]


def _went_on(failure: Failure) -> str:
    call = f"{failure.by.op}={failure.by.kernel}" if failure.by.kernel else failure.by.op
    if failure.instead is None:
        return f"{call}: nothing could be compared"
    return f"{call}: all that follows is of ours with {failure.instead}"


def rows_shown(rows: Sequence[Row], *, everything: bool) -> list[tuple[str, Row]]:
    """Labels and rows: all, or of each place in many layers the worst, and those that are wrong."""
    layers = {row.layer for row in rows if row.layer is not None}
    if everything or len(layers) <= FOLDED:
        return [(row.name, row) for row in rows]
    shown, places = list[tuple[str, Row]](), set[str]()
    wrong = [row for row in rows if not row.excess <= 1][:SHOWN]
    for row in rows:
        if row in wrong:
            shown.append((row.name, row))
        if row.layer is None:
            if row not in wrong:
                shown.append((row.name, row))
        elif row.place not in places:
            places.add(row.place)
            alike = [one for one in rows if one.place == row.place and one.layer is not None and one not in wrong]
            if alike:
                worst = max(alike, key=lambda one: one.excess)
                shown.append((f"{worst.name} (worst of {len(alike)} layers)", worst))
    return shown


def cells(label: str, row: Row) -> tuple[str, ...]:
    """A row of the table."""
    reading, by = row.reading, row.by
    made = "" if by is None else by.op if by.kernel is None else f"{by.op}={by.kernel}"
    return (
        label,
        made,
        number(reading.own.largest),
        number(reading.own.relative),
        number(reading.allowed.relative),
        f"{reading.own.cosine:.6f}",
        number(row.accumulated.accumulated.relative),
        row.worst,
        _judged(row),
    )


def _judged(row: Row) -> str:
    if row.excess <= 1:
        return ""
    if row.reading.off_scale:
        return f"all of it × {row.reading.scale.factor:.5g}"
    return f"{row.excess:.3g}× too far" if math.isfinite(row.excess) else "not alike at all"


def spoiled(result: Result) -> list[tuple[str, ...]]:
    """A row for each kernel that changes an input."""
    return [
        (f"{one.by.op}={one.by.kernel}", one.text, str(one.calls), "decode" if one.decodes_only else "")
        for one in result.comparison.spoilers
    ]


def bisection(result: Result) -> list[tuple[str, ...]]:
    """A row for each option that was changed."""
    made = list[tuple[str, ...]]()
    for outcome in result.outcomes:
        if outcome.excess is None:
            state = f"can't run: {outcome.problem}" if outcome.problem else "has no such tensor"
            made.append((str(outcome.variant), "-", state, ""))
        else:
            state = "gone" if outcome.gone else "earlier" if outcome.earlier and outcome.excess <= 1 else "stays"
            made.append((str(outcome.variant), number(outcome.excess), state, outcome.first or "none"))
    return made


def failed_place(failure: Failure, distribution: str | None) -> Iterator[tuple[str, str]]:
    """Of a call that raises: who it is, and what it raises."""
    by = failure.by
    kernel = f"={by.kernel} of {distribution}" if by.kernel else ""
    yield "made by", f"{by.op}{kernel}, called in {by.scope or 'the model'}"
    if by.call:
        yield "call", by.call
    if by.arguments:
        yield "arguments", ", ".join(f"{name}={plainly(value)}" for name, value in by.arguments.items())
    yield "raises", f"{failure.raised}{', in decodes only' if failure.decodes_only else ''}"


def ways_past(failure: Failure) -> list[tuple[str, ...]]:
    """A row for each change that may get past a call that raises; the error is that of the place that it leads to."""
    made = list[tuple[str, ...]]()
    for outcome in failure.outcomes:
        if outcome.excess is None:
            made.append((str(outcome.variant), "-", f"can't run: {outcome.problem}", ""))
        else:
            made.append((str(outcome.variant), number(outcome.excess), "runs", outcome.first or "none"))
    return made


def failed_lines(failure: Failure, distribution: str | None) -> list[str]:
    """The first as lines."""
    return [f"raises on the way to {failure.place}", *_indented(failed_place(failure, distribution))]


def costs(result: Result) -> list[tuple[str, ...]]:
    """A row for each part whose weights alone were quantized, and one for all."""
    loss = result.quantization
    if loss is None:
        return []
    return [*((one.part, number(one.error)) for one in loss.costs), ("all of it", number(loss.error))]


def strange(result: Result) -> list[tuple[str, ...]]:
    """A row for each quantized weight that is not what its method makes of the plain one."""
    found = result.quantization.strange if result.quantization else ()
    return [(one.parameter, one.method, f"{one.share:.1%}", f"{one.times:.3g}") for one in found]


def judged(result: Result) -> str:
    """What was looked at of quantized weights."""
    loss = result.quantization
    if loss is None or loss.strange:
        return ""
    if loss.judged:
        return "each quantized weight is as close to the plain one as its method makes it"
    return "no plain weights but these were at hand to judge the quantized ones by"


def first_place(result: Result) -> Iterator[tuple[str, str]]:
    """Of the first tensor that is out of tolerance: who made it, and what its error looks like."""
    row = result.comparison.first
    if row is None:
        return
    reading, by = row.reading, row.by
    if by is not None:
        kernel = f"={by.kernel} of {result.made_by}" if by.kernel else ""
        yield "made by", f"{by.op}{kernel}, called in {by.scope or 'the model'}"
        if by.call:
            yield "call", by.call
        if by.arguments:
            yield "arguments", ", ".join(f"{name}={plainly(value)}" for name, value in by.arguments.items())
    own, kind = reading.own, "decodes" if row.worst == "decode" else "prefill"
    allowed = f"{number(own.relative)} relative ({number(reading.allowed.relative)} allowed)"
    yield "own error", f"{allowed}, {number(own.largest)} at most, cosine {own.cosine:.6f}, in {kind}"
    if reading.off_scale:
        yield (
            "scale",
            f"{reading.scale.factor:.6g} times the reference, {reading.allowed.off_scale(reading.scale):.1e} off 1 allowed",
        )
    for place, text in enumerate(result.verdict.findings):
        yield "" if place else "looks like", text


def first_lines(result: Result) -> list[str]:
    """The same as lines."""
    if result.comparison.first is None:
        return []
    return ["", f"first out of tolerance: {result.comparison.first.name}", *_indented(first_place(result))]


def _indented(facts: Iterator[tuple[str, str]]) -> list[str]:
    return [f"  {name:<11}{text}" for name, text in facts]


def verdict(result: Result) -> str:
    """The last line."""
    return f"to blame: {result.verdict.text}"
