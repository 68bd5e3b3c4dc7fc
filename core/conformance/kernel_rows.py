"""Batch invariance: a row's result alone, among others and at another place, to the bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from bestiary.core.conformance.kernel_cases import ROWS_OF_LARGE, Batch, large, row_count, take
from bestiary.core.conformance.kernel_memory import bits
from bestiary.core.conformance.kernel_run import Run, mutated
from bestiary.core.ops.declare import OpDeclaration

#: Rows of the batches in which an input's rows come again and again; odd, on either side of the counts that a build asks for.
_SIZES = (7, 17, 33, 65, 129, 257, 513)
#: Where the op's own function derives a batch, which is slow.
_DERIVED = (7, 65, 513)


def odd_one_out(op: OpDeclaration[..., Any], batch: Batch, run: Callable[[Batch], Run | None]) -> str | None:
    """The first row whose result depends on its batch, in words; None if there is none.

    Args:
        batch: one of the op's own inputs, all of whose rows are the measure.
        run: runs a batch; None where the kernel declines it.
    """
    count = row_count(op, batch.args) or 0
    whole = run(batch) if count else None
    if whole is None:
        return None
    before = mutated(op, batch.args)
    for numbers in _selections(count, _sizes(op, batch)):
        other = run(take(op, batch, numbers))
        if other is None:
            continue
        for index in range(op.results):
            place = _differs(other.results[index], whole.results[index], numbers)
            if place is not None:
                alone = "alone" if len(numbers) == 1 else f"at place {place} of {len(numbers)} rows"
                return f"row {numbers[place]} is another {alone} than at its place among {count}"
        changes = zip(op.mutates, before, other.results[op.results :], whole.results[op.results :], strict=True)
        for name, was, found, wanted in changes:
            changed = (bits(found) != bits(was)).any(1)
            if (changed & (bits(found) != bits(wanted)).any(1)).any():
                return f"what {len(numbers)} of the rows leave in {name} is another than what all {count} leave there"
    return None


def _sizes(op: OpDeclaration[..., Any], batch: Batch) -> Sequence[int]:
    if large(batch):
        return ROWS_OF_LARGE
    return _DERIVED if callable(op.rows) else _SIZES


def _selections(count: int, sizes: Sequence[int]) -> Iterator[list[int]]:
    """Rows alone, all of them turned around, and batches of odd sizes in which they come again and again."""
    yield from ([number] for number in sorted({0, count // 2, count - 1}))
    yield list(reversed(range(count)))
    for size in sizes:
        yield [(number * 3 + 1) % count for number in range(size)]


def _differs(found: Tensor, whole: Tensor, numbers: list[int]) -> int | None:
    """The place of the first row that is not the whole's row of that number."""
    wanted = whole[numbers]
    unequal = (bits(found) != bits(wanted)).any(1).view(len(numbers), -1).any(1)
    return int(unequal.nonzero()[0]) if unequal.any() else None
