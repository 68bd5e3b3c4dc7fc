"""What a KV cache of few bits loses, told from mistakes that it would hide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from bestiary.core.diff.bisect import Outcome, Variant, all_references, plain_cache, why
from bestiary.core.diff.compare import Comparison, Standard, compare
from bestiary.core.diff.measure import Error
from bestiary.core.diff.open import Ours
from bestiary.core.sides.engine_side import EngineSide
from bestiary.core.sides.side import Side


@dataclass(frozen=True)
class Search:
    """Where a mistake is looked for.

    Args:
        ours, side, comparison, right: our side as it is looked at, and what it was found to be.
        note: what was done about a cache of few bits, for people; empty: nothing.
        outcomes: of what was changed to find out.
        loss: what the cache loses, for people, where that is all that is wrong.
    """

    ours: Ours
    side: EngineSide
    comparison: Comparison
    right: Sequence[Standard]
    note: str = ""
    outcomes: Sequence[Outcome] = ()
    loss: str | None = None

    @property
    def standard(self) -> Standard | None:
        """Of the prompt on which the first tensor that is wrong is worst."""
        first = self.comparison.first
        return None if first is None else self.right[first.prompt]


def behind_the_cache(asis: Search, against: Side, advance: Callable[[], None]) -> Search:
    """Look past what a cache of few bits loses: at the engine with a plain cache, or, where that is right, at what the kernels
    lose beyond the ops' references.

    Args:
        asis: our side as it is, with something out of tolerance.
        advance: called after each of three comparisons.
    """
    plain, kind = plain_cache(asis.side), asis.side.few_bits
    if plain is None or kind is None or (isinstance(against, EngineSide) and against.few_bits):
        return asis
    ours, references = asis.ours, all_references(asis.ours.host)
    longest = max(len(one.prompt.tokens) for one in asis.right)
    try:
        side = ours.load(longest, **plain.options)
        found = compare(side, asis.right)
        advance()
        if found.wrong:
            note = f"in {plain.subject}, not {kind} as ours has it, whose loss would hide what else is wrong"
            found = replace(found, spoiled=asis.comparison.spoiled)
            return Search(replace(ours, base={**ours.base, **plain.options}), side, found, asis.right, note)
        side = ours.load(longest, **references.options)
        lost = [compare(side, [standard], only_own=True) for standard in asis.right]
        advance()
    except Exception as error:  # memory may not do, and kernels that nobody measured may fail in any way
        return replace(asis, note=f"of {kind}; what it loses can't be told from mistakes: {why(error)}")
    right = [replace(standard, lost=_errors(one)) for standard, one in zip(asis.right, lost, strict=True)]
    beyond = compare(asis.side, right)
    advance()
    if beyond.first is not None:
        note = f"of {kind}: what the ops' references lose in it is allowed beside rounding, 1.5 times"
        return replace(asis, comparison=beyond, right=right, note=note)
    loss = (
        f"the cache's {kind}, which loses more than rounding; no mistake: with the KV cache in {plain.subject} all tensors are "
        f"within tolerance, and the ops' references lose as much in {kind}"
    )
    return replace(asis, outcomes=_outcomes(asis, (plain, found), (references, lost)), loss=loss)


def _errors(found: Comparison) -> dict[tuple[str, str], Error]:
    return {(row.name, kind): reading.own for row in found.rows for kind, reading in row.readings.items()}


def _outcomes(
    asis: Search, plain: tuple[Variant, Comparison], references: tuple[Variant, list[Comparison]]
) -> list[Outcome]:
    row = asis.comparison.first
    if row is None:
        return []
    made = []
    for variant, found in ((plain[0], plain[1]), (references[0], references[1][row.prompt])):
        there, first = found.row(row.name), found.first
        made.append(Outcome(variant, there.excess if there else None, first.name if first else None))
    return made
