"""A recording as text: tables of calls and of sums."""

from __future__ import annotations

from collections.abc import Sequence

from bestiary.core.observe.record import Recording
from bestiary.core.observe.recorder import Step
from bestiary.core.observe.roofs import Roofs
from bestiary.core.observe.summary import Row

CALL_HEADINGS = ("µs", "op", "kernel", "module", "tensors")
# Behind the name.
_SUM_HEADINGS = ("calls", "time", "share", "bytes", "flops", "bytes/s", "flops/s", "of the roof")
NONE = "–"


def listed_steps(found: Recording, *, everything: bool) -> list[Step]:
    """The steps whose calls are shown: the first that runs prompts and one decode in full, unless all are wanted."""
    if everything:
        return found.steps
    prompts = [step for step in found.steps if step.kind != "decode"][:1]
    decodes = [step for step in found.steps if step.kind == "decode"]
    # Not the first one, in which something may still be made.
    return prompts + decodes[len(decodes) // 2 :][:1]


def step_title(step: Step) -> str:
    """One line about a step."""
    sequences = "1 sequence" if step.sequences == 1 else f"{step.sequences} sequences"
    tokens = "1 token" if step.tokens == 1 else f"{step.tokens} tokens"
    return (
        f"step {step.number}: {step.kind}, {tokens} of {sequences}, {len(step.calls)} calls, "
        f"{time_text(step.in_calls)} in them, {time_text(step.seconds)} in all"
    )


def call_rows(step: Step) -> list[Sequence[str]]:
    """A row a call, under ``CALL_HEADINGS``."""
    return [(f"{c.seconds * 1e6:.1f}", c.op, c.kernel, c.module or "(model)", c.shapes) for c in step.calls]


def sum_headings(what: str) -> tuple[str, ...]:
    """Of a table of sums by ``what``."""
    return (what, *_SUM_HEADINGS)


def sum_rows(rows: Sequence[Row]) -> list[Sequence[str]]:
    """A row a sum, under ``sum_headings``."""
    return [
        (
            row.name,
            str(row.calls),
            time_text(row.seconds),
            f"{row.share:.1%}",
            amount(row.bytes),
            amount(row.flops),
            amount(row.bandwidth),
            amount(row.rate),
            NONE if row.roof is None else f"{row.roof:.1%}",
        )
        for row in rows
    ]


def roofs_text(roofs: Roofs) -> str:
    """The roofs in a line."""
    return (
        f"Roofs, measured now: {amount(roofs.bandwidth)}B/s of memory (copy {amount(roofs.copy)}B/s, "
        f"read {amount(roofs.read)}B/s), {amount(roofs.flops)}FLOP/s in {roofs.dtype}"
    )


def outside_text(found: Recording) -> str:
    """Where the rest of the time is."""
    return (
        f"{time_text(found.wall)} in all: {time_text(found.in_calls)} in {len(found.calls):,} calls, "
        f"{time_text(found.outside)} outside of them (scheduling, inputs, sampling, and recording itself); "
        f"the same run unobserved: {time_text(found.plain_wall)}"
    )


def notes(device: str) -> list[str]:
    """What to know when reading the numbers."""
    found = [
        "Bytes and flops are what the op needs at least, read and written once; – where the op declares no cost, and its "
        "bytes are then those of all its tensors. Data that a cache still holds can be faster than memory: above 100 %."
    ]
    if device != "cpu":
        found.append(
            "Each call waited until the device had done the one before, and ran without recorded graphs: on a GPU the times "
            "add up to more than those of an unobserved run."
        )
    return found


def amount(value: float | None) -> str:
    """A count or a rate with three digits and a decimal prefix; a dash where it is not known.

    >>> amount(0), amount(999.4), amount(1234), amount(5.678e12), amount(None)
    ('0', '999', '1.23 k', '5.68 T', '–')
    """
    if value is None:
        return NONE
    for size, prefix in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            scaled = value / size
            digits = 2 if scaled < 10 else 1 if scaled < 100 else 0
            return f"{scaled:.{digits}f}{prefix}"
    return f"{value:.0f}"


def time_text(seconds: float) -> str:
    """``12.3 µs``, ``4.56 ms``, ``7.89 s``."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} µs"
    return f"{seconds * 1e3:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"
