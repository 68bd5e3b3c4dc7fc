"""Run two sides on the same tokens and compare every tensor that both have."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from bestiary.core.diff.measure import FACTORS, Allowance, Error, Scale, scales, unit
from bestiary.core.sides.engine_side import EngineSide
from bestiary.core.sides.side import Instead, Made, Noise, Seen, Side, Spoiled, common_name

#: The last tokens of a prompt run one by one: other kernels may run them.
DECODES = 4
#: How often roundings that are carried along are drawn; the largest error counts. They may choose other experts.
_DRAWS = 2
_LAYER = re.compile(r"^(?P<stack>.*?\w)\.(?P<index>\d+)(?:\.(?P<rest>.+))?$")


@dataclass(frozen=True)
class Prompt:
    """Tokens of one sequence, and in which steps they run."""

    tokens: tuple[int, ...]
    chunks: tuple[int, ...]

    @classmethod
    def of(cls, tokens: Sequence[int], longest: int) -> Prompt:
        """All but the last few in chunks of at most ``longest``, those one by one."""
        decodes = min(DECODES, len(tokens) - 1)
        first = len(tokens) - decodes
        chunks = [longest] * (first // longest) + ([first % longest] if first % longest else [])
        return cls(tuple(tokens), (*chunks, *[1] * decodes))

    @property
    def parts(self) -> dict[str, slice]:
        """Which tokens run in chunks of several, and which as decodes."""
        decodes = next((n for n, size in enumerate(reversed(self.chunks)) if size != 1), len(self.chunks) - 1)
        first = len(self.tokens) - decodes
        return {"prefill": slice(0, first)} | ({"decode": slice(first, None)} if decodes else {})


@dataclass(frozen=True)
class Reading:
    """One tensor in one kind of step: ``own`` is what was added right there, ``accumulated`` all that is there.

    ``allowed``, ``allowed_accumulated``: what rounding may make of each. ``scale``: by what all of it is too large.
    """

    own: Error
    accumulated: Error
    allowed: Allowance
    allowed_accumulated: Allowance
    scale: Scale = field(default_factory=Scale)

    @property
    def excess(self) -> float:
        """The own error over what is allowed: its size, or how much of it is one factor."""
        return max(self.allowed.excess(self.own), self.allowed.scale_excess(self.scale))

    @property
    def off_scale(self) -> bool:
        """Whether the error is of a size that rounding may have, and a factor, which rounding does not make."""
        return self.allowed.excess(self.own) <= 1 < self.allowed.scale_excess(self.scale)

    @property
    def accumulated_excess(self) -> float:
        """The accumulated error of a typical token over what is allowed."""
        return self.allowed_accumulated.typical_excess(self.accumulated)


@dataclass(frozen=True)
class Row:
    """A tensor: its name, its layer (None outside of them) and place in it, and its readings by kind of step.

    ``made``: by whom, by kind of step. ``prompt``: the number of the prompt with the worst readings.
    """

    name: str
    layer: int | None
    place: str
    readings: dict[str, Reading]
    made: dict[str, Made]
    prompt: int = 0

    @property
    def worst(self) -> str:
        """The kind of step that is farther from its allowance."""
        return max(self.readings, key=lambda kind: _number(self.readings[kind].excess))

    @property
    def reading(self) -> Reading:
        """Of that kind of step."""
        return self.readings[self.worst]

    @property
    def by(self) -> Made | None:
        """Who made it there."""
        return self.made.get(self.worst) or next(iter(self.made.values()), None)

    @property
    def excess(self) -> float:
        """The own error over what is allowed, of the worst kind of step."""
        return self.reading.excess

    @property
    def accumulated(self) -> Reading:
        """The reading whose accumulated error is the farthest from its allowance."""
        return max(self.readings.values(), key=lambda one: _number(one.accumulated_excess))


@dataclass(frozen=True)
class Spoiler:
    """A kernel that changes one of its inputs, as it was first seen, and at how many calls it was.

    ``decodes_only``: only in steps of one token.
    """

    first: Spoiled
    calls: int
    decodes_only: bool

    @property
    def by(self) -> Made:
        """Who."""
        return self.first.by

    @property
    def text(self) -> str:
        """What it does, after "it"."""
        one = self.first
        what = f"what {one.parameter} holds of other tokens" if one.cached else f"its input {one.parameter}"
        return f"changes {what}, {one.changed} of {one.total} numbers in {one.by.scope or 'the model'}"


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Args:
        rows: in the order in which our side makes the tensors.
        missing: tensors that only the reference has.
        spoiled: inputs that our calls changed against their ops' declarations; they were put back.
    """

    rows: list[Row]
    missing: tuple[str, ...] = ()
    spoiled: tuple[Spoiled, ...] = ()

    @property
    def spoilers(self) -> list[Spoiler]:
        """The kernels that changed inputs, in the order of execution."""
        found: dict[tuple[str, str | None, str], list[Spoiled]] = {}
        for one in self.spoiled:
            found.setdefault((one.by.op, one.by.kernel, one.parameter), []).append(one)
        return [Spoiler(ones[0], len(ones), all(one.decode for one in ones)) for ones in found.values()]

    @property
    def first(self) -> Row | None:
        """The first tensor whose own error is more than rounding."""
        return next((row for row in self.rows if not row.excess <= 1), None)

    @property
    def carried(self) -> Row | None:
        """The first tensor whose accumulated error is more than roundings that are carried along, if the logits' is."""
        if not self.rows or self.rows[-1].accumulated.accumulated_excess <= 1:
            return None
        return next(row for row in self.rows if not row.accumulated.accumulated_excess <= 1)

    @property
    def wrong(self) -> bool:
        """Whether something is out of tolerance, but for what changed inputs carry along."""
        return self.first is not None or (self.carried is not None and not self.spoiled)

    def wrong_before(self, name: str) -> bool:
        """Whether a tensor that is made before another is out of tolerance."""
        names = [row.name for row in self.rows]
        return name in names and any(not row.excess <= 1 for row in self.rows[: names.index(name)])

    def row(self, name: str) -> Row | None:
        """The row of a tensor."""
        return next((row for row in self.rows if row.name == name), None)


@dataclass
class Standard:
    """The reference's tensors of one prompt, and what rounding to the coarsest dtype of either side makes of them.

    ``own``, ``carried``: by tensor and kind of step, for tensors made of right ones, and with roundings carried along.
    ``lost``: the readings of our ops' references, for tensors made of right ones, where what they lose is to be allowed.
    """

    prompt: Prompt
    seen: Seen
    coarsest: torch.dtype
    own: dict[tuple[str, str], Error] = field(default_factory=dict)
    carried: dict[tuple[str, str], Error] = field(default_factory=dict)
    lost: Mapping[tuple[str, str], Reading] = field(default_factory=dict)

    def draw(self, reference: Side, seed: int, *, carried: bool) -> None:
        """Let the reference round once more; the larger error counts."""
        errors, given = (self.carried, {}) if carried else (self.own, self.seen.tensors)
        change = Instead(given, Noise(unit(self.coarsest), seed))
        found = reference.run(self.prompt.tokens, self.prompt.chunks, change).tensors
        for kind, part in self.prompt.parts.items():
            for name, right in self.seen.tensors.items():
                error = Error.of(found[name][part], right[part])
                errors[name, kind] = max(errors.get((name, kind), error), error, key=lambda one: one.relative)

    def allowance(self, name: str, kind: str, *, carried: bool = False) -> Allowance:
        """What rounding may make of a tensor in one kind of step."""
        errors = self.carried if carried else self.own
        lost = None if carried else self.lost.get((name, kind))
        own, shifted = (None, 0.0) if lost is None else (lost.own, abs(lost.scale.factor - 1))
        return Allowance(FACTORS[self.coarsest], unit(self.coarsest), errors[name, kind], own, shifted)

    @property
    def instead(self) -> Instead:
        """The reference's tensors, to go on with."""
        return Instead(self.seen.tensors)


def standards(reference: Side, prompts: Sequence[Prompt], coarsest: torch.dtype) -> list[Standard]:
    """Run the reference: as it is, and with every tensor changed by as much as a rounding to ``coarsest`` may change it."""
    made = []
    for prompt in prompts:
        one = Standard(prompt, reference.run(prompt.tokens, prompt.chunks), coarsest)
        one.draw(reference, 0, carried=False)
        for seed in range(_DRAWS):
            one.draw(reference, seed, carried=True)
        made.append(one)
    return made


def compare(
    ours: EngineSide,
    against: Sequence[Standard],
    *,
    only_own: bool = False,
    advance: Callable[[], None] = lambda: None,
) -> Comparison:
    """Compare with every prompt; of each tensor the worst counts.

    Args:
        only_own: leave the accumulated errors out, which take another run.
        advance: called after each prompt.
    """
    merged: dict[str, Row] = {}
    missing: dict[str, None] = {}
    spoiled: list[Spoiled] = []
    for number, standard in enumerate(against):
        found = _one(ours, standard, number, only_own)
        for row in found.rows:
            before = merged.get(row.name)
            merged[row.name] = row if before is None else _worse(before, row)
        missing |= dict.fromkeys(found.missing)
        spoiled += found.spoiled
        advance()
    return Comparison(list(merged.values()), tuple(missing), tuple(spoiled))


def _one(ours: EngineSide, standard: Standard, number: int, only_own: bool) -> Comparison:
    prompt, wanted = standard.prompt, standard.seen.tensors
    own = ours.run(prompt.tokens, prompt.chunks, standard.instead, guard=True)
    whole = own if only_own else ours.run(prompt.tokens, prompt.chunks)
    rows: list[Row] = []
    shared: set[str] = set()
    for names in own.groups:
        name = common_name(names, wanted)
        if name is None:
            continue
        shared.update(names)
        readings = {}
        scale = scales(own.tensors[name], wanted[name], prompt.parts)
        for kind, part in prompt.parts.items():
            right = wanted[name][part]
            added, there = (Error.of(side.tensors[name][part], right) for side in (own, whole))
            readings[kind] = Reading(
                added,
                there,
                standard.allowance(name, kind),
                standard.allowance(name, kind, carried=True),
                scale[kind],
            )
        made = {kind: by[name] for kind, by in (("prefill", own.made), ("decode", own.decoded)) if name in by}
        rows.append(Row(name, *_place(name), readings, made, number))
    missing = tuple(name for name in wanted if name not in shared and wanted[name].is_floating_point())
    return Comparison(rows, missing, tuple(own.spoiled))


def layer_of(name: str) -> str | None:
    """The path of the layer that a tensor or parameter lies in, ``layers.3``; None: in none."""
    found = _LAYER.match(name)
    return None if found is None else f"{found['stack']}.{found['index']}"


def _place(name: str) -> tuple[int | None, str]:
    found = _LAYER.match(name)
    if found is None:
        return None, name
    return int(found["index"]), found["rest"] or "output"


def _worse(one: Row, other: Row) -> Row:
    return other if _number(other.excess) > _number(one.excess) else one


def _number(value: float) -> float:
    return math.inf if math.isnan(value) else value
