"""What storage in few bits loses, of weights and of the KV cache, told from mistakes that it would hide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bestiary.core.diff.bisect import Outcome, Variant, all_references, plain_storage, why
from bestiary.core.diff.compare import Comparison, Reading, Standard, compare
from bestiary.core.diff.open import Ours
from bestiary.core.diff.quantization import Loss, method_names
from bestiary.core.sides.engine_side import EngineSide
from bestiary.core.sides.side import Side


@dataclass(frozen=True)
class Search:
    """Where a mistake is looked for.

    Args:
        ours, side, comparison, right: our side as it is looked at, and what it was found to be.
        plain: what makes plain what is stored in few bits; None: nothing is, or the other side stores it so, too.
        note: what was done about what is stored in few bits, for people; empty: nothing.
        outcomes: of what was changed to find out.
        lost: what loses more than rounding, for people, where that is all that is wrong.
        quantization: what quantized weights cost, where they are among it.
    """

    ours: Ours
    side: EngineSide
    comparison: Comparison
    right: Sequence[Standard]
    plain: Variant | None = None
    note: str = ""
    outcomes: Sequence[Outcome] = ()
    lost: str | None = None
    quantization: Loss | None = None

    @property
    def standard(self) -> Standard | None:
        """Of the prompt on which the first tensor that is wrong is worst."""
        first = self.comparison.first
        return None if first is None else self.right[first.prompt]


def with_plain(asis: Search, against: Side, source: Path | None) -> Search:
    """The search with what makes plain what our side stores in few bits and the other does not.

    Args:
        source: a directory with the plain weights of ours, where quantized ones were made before.
    """
    cache, weights = bool(asis.side.few_bits), bool(asis.side.methods)
    if isinstance(against, EngineSide):
        cache, weights = cache and not against.few_bits, weights and not against.methods
    return replace(asis, plain=plain_storage(asis.side, source, cache=cache, weights=weights))


def behind_few_bits(asis: Search, advance: Callable[[], None]) -> Search:
    """Look past what storage in few bits loses: at the engine with plain weights and a plain cache, or, where that is right, at
    what the kernels lose beyond the ops' references.

    Args:
        asis: our side as it is, with something out of tolerance.
        advance: called after each of three comparisons.
    """
    plain = asis.plain
    if plain is None:
        return asis
    ours, references, kind = asis.ours, all_references(asis.ours.host), stored_in(asis)
    instead = f"the {plain}" if plain.kind == "cache" else str(plain)
    longest = max(len(one.prompt.tokens) for one in asis.right)
    try:
        side = ours.load(longest, **plain.options)
        found = compare(side, asis.right)
        advance()
        if found.wrong:
            note = f"of ours with {instead}, in place of {kind}, whose loss would hide what else is wrong"
            found = replace(found, spoiled=asis.comparison.spoiled)
            return Search(replace(ours, base={**ours.base, **plain.options}), side, found, asis.right, note=note)
        side = ours.load(longest, **references.options)
        lost = [compare(side, [standard], only_own=True) for standard in asis.right]
        advance()
    except Exception as error:  # memory may not do, and kernels that nobody measured may fail in any way
        return replace(asis, note=f"what {kind} loses can't be told from mistakes: {why(error)}")
    right = [replace(standard, lost=_readings(one)) for standard, one in zip(asis.right, lost, strict=True)]
    beyond = compare(asis.side, right)
    advance()
    if beyond.first is not None:
        note = f"what the ops' references lose by {kind} is allowed beside rounding, 1.5 times"
        return replace(asis, comparison=beyond, right=right, note=note)
    row = asis.comparison.first
    as_much = lost[row.prompt if row else 0].first is not None
    loses = (
        "the ops' references lose as much" if as_much else "what the ops' references lose, 1.5 times, allows the rest"
    )
    text = (
        f"{kind}, which loses more than rounding; no mistake: with {instead} all tensors are within tolerance, and "
        f"{loses}"
    )
    return replace(asis, outcomes=_outcomes(asis, (plain, found), (references, lost)), lost=text)


def stored_in(search: Search) -> str:
    """What is stored in few bits, for people."""
    options = {} if search.plain is None else search.plain.options
    weights = f"quantization ({method_names(search.side.methods, search.ours.host)})" if "plain" in options else None
    cache = f"the cache's {search.side.few_bits}" if "kv_dtype" in options else None
    return " and ".join(one for one in (weights, cache) if one)


def _readings(found: Comparison) -> dict[tuple[str, str], Reading]:
    return {(row.name, kind): reading for row in found.rows for kind, reading in row.readings.items()}


def _outcomes(
    asis: Search, plain: tuple[Variant, Comparison], references: tuple[Variant, list[Comparison]]
) -> list[Outcome]:
    row = asis.comparison.first
    if row is None:
        return []
    return [Outcome.of(*plain, row.name), Outcome.of(references[0], references[1][row.prompt], row.name)]
