"""Calls of our side that raise: who, and what runs in their place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from bestiary.core.diff.bisect import Outcome, Suspects, Variant, attempt, variants
from bestiary.core.diff.compare import Comparison, Standard, compare
from bestiary.core.diff.open import Ours
from bestiary.core.plugins import PluginHost
from bestiary.core.program.call_error import CallError
from bestiary.core.sides.engine_side import EngineSide
from bestiary.core.sides.side import Made


@dataclass(frozen=True)
class Failure:
    """A call that raises.

    Args:
        by: who.
        place: the nearest tensor that it makes, or that is made of what it makes.
        raised: the exception, for people.
        decodes_only: steps of many tokens ran through before.
        outcomes: of what was changed to get past it; ``place`` tells how right it is then.
        instead: the change with which the comparison went on; None: nothing helps.
    """

    by: Made
    place: str
    raised: str
    decodes_only: bool
    outcomes: Sequence[Outcome] = ()
    instead: Variant | None = None

    @property
    def text(self) -> str:
        """What happens, after "it"."""
        ran = f"; with {self.instead} it runs" if self.instead else "; nothing that was changed makes it run"
        scope = self.by.scope or "the model"
        way = "" if scope == self.place else f", on the way to {self.place}"
        return f"raises {self.raised} in {scope}{way}{ran}"


class Passed(NamedTuple):
    """Our side as it could be compared, and what kept it from it before."""

    ours: Ours
    side: EngineSide
    comparison: Comparison
    failures: list[Failure]


def compared(ours: Ours, side: EngineSide, right: Sequence[Standard], advance: Callable[[], None]) -> Passed:
    """Compare our side; where a call raises, with the first change with which it does not. Where none helps, the comparison is
    empty.

    Args:
        advance: called after each prompt.
    """
    failures: list[Failure] = []
    while True:
        try:
            return Passed(ours, side, compare(side, right, advance=advance), failures)
        except CallError as error:
            known = error.instruction.target.name in {failure.by.op for failure in failures}
            failure = _failure(ours, side, right, error)
        if known:  # what was put in its place raises, too
            failures[-1] = replace(failures[-1], instead=None)
            return Passed(ours, side, Comparison([]), failures)
        failures.append(failure)
        if failure.instead is None:
            return Passed(ours, side, Comparison([]), failures)
        ours = with_options(ours, failure.instead)
        side = ours.load(max(len(one.prompt.tokens) for one in right))


def with_options(ours: Ours, variant: Variant) -> Ours:
    """Our side with a change that stays."""
    kernels = {**ours.base.get("kernels", {}), **variant.options.get("kernels", {})}
    return replace(ours, base={**ours.base, **variant.options, "kernels": kernels})


def _failure(ours: Ours, side: EngineSide, right: Sequence[Standard], error: CallError) -> Failure:
    by, standard = side.who(error.instruction, error.kernel), right[0]
    place = side.after(error.instruction, standard.seen.tensors) or "logits"
    decodes_only = error.tokens == 1 and standard.prompt.chunks[0] > 1
    outcomes = [attempt(ours, variant, place, right) for variant in _ways_past(side, by, ours.host)]
    instead = next((outcome.variant for outcome in outcomes if outcome.excess is not None), None)
    return Failure(by, place, error.raised, decodes_only, outcomes, instead)


def _ways_past(side: EngineSide, by: Made, host: PluginHost) -> list[Variant]:
    """The reference and the other kernels of the op, without the fusion that brought it, and all references."""
    if by.kernel is None:
        return []
    fusions = {fusion.name for fusion in host.fusions() if fusion.op == by.op}
    return [
        variant
        for variant in variants(Suspects(side, {by.op: by.kernel}, host))
        if variant.kind == "reference"
        or (variant.kind == "kernel" and variant.subject != f"{by.op}={by.kernel}")
        or (variant.kind == "fusion" and variant.subject in fusions)
    ]
