"""Who is to blame, from what the bisection found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from bestiary.core.diff.arguments import other_arguments, plainly, replay, solved_eps
from bestiary.core.diff.bisect import Outcome
from bestiary.core.diff.compare import Comparison, Row, Standard
from bestiary.core.diff.open import Ours, references
from bestiary.core.diff.patterns import CONVERT, MODEL, Case, Finding, patterns
from bestiary.core.errors import BestiaryError
from bestiary.core.ops.declare import OpDeclaration
from bestiary.core.plugins import PluginHost
from bestiary.core.program.calls import REFERENCE
from bestiary.core.rope import Rope
from bestiary.core.sides.engine_side import Captured, EngineSide
from bestiary.core.sides.side import Made, Seen, Side
from bestiary.core.sides.transformers_side import TransformersSide

Blame = Literal[
    "nothing", "kernel", "fusion", "options", "accumulation", "rounding", "plugin", "models", "sum", "undecided"
]


@dataclass(frozen=True)
class Verdict:
    """What is to blame.

    Args:
        blame: ``nothing``: all is within rounding; ``options``: it takes several changes at once; ``plugin``: the model's;
            ``models``: the other side, or it is not the same model; ``sum``: no place alone.
        text: for people.
        distribution: whose it is, with its version, where one is to blame.
        findings: what the error looks like, each of it tested.
        part: the file of the model plugin's contract in which to look.
    """

    blame: Blame
    text: str
    distribution: str | None = None
    findings: tuple[str, ...] = ()
    part: str | None = None


def judge(
    comparison: Comparison, outcomes: Sequence[Outcome], found: Sequence[Finding], ours: Ours, side: Side
) -> Verdict:
    """Name what is to blame.

    Args:
        outcomes: of the bisection, where a place is out of tolerance.
        found: what the error at that place looks like.
        side: what ours is held against.
    """
    row = comparison.first
    if row is None:
        carried = comparison.carried
        if carried is None:
            return Verdict("nothing", "nothing: all tensors are within tolerance")
        text = f"no place alone: each is within rounding, but what adds up is not, from {carried.name} on"
        return Verdict("sum", text)
    blame, text, distribution = _blame(row, outcomes, ours, side)
    texts = tuple(dict.fromkeys(finding.text for finding in found))
    part = None
    if blame == "plugin":
        part = next((finding.part for finding in found if finding.part), MODEL)
        text += f": {row.name}{_call(row.by)}; look in its {part}"
    return Verdict(blame, text, distribution, texts, part)


def origin_of(host: PluginHost, made: Made | None) -> str | None:
    """The distribution, with its version, whose kernel made a tensor."""
    if made is None or made.kernel is None:
        return None
    if made.kernel == REFERENCE:
        return str(host.origin(host.op(made.op)))
    return str(host.origin(host.kernel(made.op, made.kernel)))


def _blame(row: Row, outcomes: Sequence[Outcome], ours: Ours, side: Side) -> tuple[Blame, str, str | None]:
    host, gone = ours.host, [outcome.variant for outcome in outcomes if outcome.gone]
    references = [
        v.subject.partition("=")[0] for v in gone if v.kind == "kernel" and v.subject.endswith(f"={REFERENCE}")
    ]
    if references:
        return "kernel", *_kernel(row, references[0], host)
    if fusions := [variant.subject for variant in gone if variant.kind == "fusion"]:
        (fusion,) = (one for one in host.fusions() if one.name == fusions[0])
        return "fusion", f"fusion {fusion.name} of {host.origin(fusion)}", str(host.origin(fusion))
    if any(variant.kind == "reference" for variant in gone):
        others = ", ".join(str(variant) for variant in gone if variant.kind != "reference")
        text = "kernels or fusions together: with all references it is gone"
        return "options", f"{text}, and also {others}" if others else text, None
    if any(variant.kind == "accumulation" for variant in gone):
        by = f" of {row.by.op}={row.by.kernel}" if row.by else ""
        return "accumulation", f"16-bit sums{by}: with sums in float32 it is gone", origin_of(host, row.by)
    if any(variant.kind == "dtype" for variant in gone):
        return "rounding", "rounding: in float32 it is gone", None
    if problem := next((one.problem for one in outcomes if one.variant.kind == "reference" and one.problem), None):
        return "undecided", f"not decided: with all references it can't run here: {problem}", None
    if not isinstance(side, TransformersSide):
        text = (
            f"the other side, or its weights or config: with all our references they part at {row.name}{_call(row.by)}"
        )
        return "models", f"{text}; hold that side against its own references", None
    model = host.model(ours.manifest.checkpoint.model)
    return "plugin", f"the model plugin {host.origin(model)}", str(host.origin(model))


def _kernel(row: Row, op: str, host: PluginHost) -> tuple[str, str | None]:
    made = [one for one in row.made.values() if one.op == op]
    if row.by is not None and row.by.op == op:
        made = [row.by]
    kernel = next((one.kernel for one in made if one.kernel), None)
    fused = next((one.name for one in host.fusions() if one.op == op), None)
    brought = f", which the fusion {fused} puts in" if fused else ""
    if kernel is None:
        return f"the kernel of {op}{brought}", None
    where = ""
    if len(row.readings) > 1:
        wrong = [kind for kind, reading in row.readings.items() if not reading.excess <= 1]
        where = f", in {'decodes' if wrong == ['decode'] else 'steps of many tokens'} only" if len(wrong) == 1 else ""
    whose = str(host.origin(host.kernel(op, kernel)))
    return f"kernel {op}={kernel} of {whose}{brought}{where}", whose


def _call(made: Made | None) -> str:
    if made is None:
        return ""
    said = ", ".join(
        f"{name}={plainly(value)}" for name, value in made.arguments.items() if not isinstance(value, Rope)
    )
    return f" ({made.op}{', ' + said if said else ''})"


def describe(row: Row, standard: Standard, side: EngineSide, against: Side, ours: Ours) -> list[Finding]:
    """What the error of a tensor looks like: by the numbers, and by what the reference of its op makes of other arguments."""
    prompt, tensors = standard.prompt, standard.seen.tensors
    wanted = tensors[row.name]
    own = side.run(prompt.tokens, prompt.chunks, standard.instead)
    found = own.tensors[row.name]
    allowed = row.reading.allowed

    def fits(one: Tensor, other: Tensor) -> bool:
        return allowed.fits(one, other, prompt.parts if len(one) == len(prompt.tokens) else None)

    names = next((names for names in own.groups if row.name in names), ())
    modules = [against.weights(name) for name in names] if isinstance(against, TransformersSide) else []
    weights = {name: weight for module in modules for name, weight in module.items()}
    case = Case(row.name, found, wanted, fits, tensors, own.tensors, weights, prompt)
    findings = [*_pairs(row, own, tensors, fits), *patterns(case)]
    calls, ropes = _captured(row, standard, side, ours)
    if not calls:
        return findings
    right = found.numel() == wanted.numel() and fits(replay(calls), wanted)
    # Where the op's reference is right, the kernel is not: with which arguments would the reference do as it does?
    target = found if right else wanted

    def is_target(made: Tensor) -> bool:
        return made.numel() == target.numel() and fits(made.reshape(target.shape), target)

    whose = "ours" if right else "the reference's"
    argued = [*solved_eps(calls, target, is_target, whose)] or [*other_arguments(calls, is_target, whose, ropes)]
    if right:
        return [Finding(f"the reference of {calls[0].op.name}, given the same, is right"), *argued, *findings]
    return [*argued, *findings, *_weights(calls, weights, argued)]


def _captured(row: Row, standard: Standard, side: EngineSide, ours: Ours) -> tuple[list[Captured], list[Rope]]:
    """The calls of the unfused op behind a tensor, in reference mode, and the model's rotary embeddings."""
    # What a cache holds is what was made before: keys after their rotation.
    name = row.name.replace(".cache.k", ".rope.1").removesuffix(".cache.v")
    try:
        plain = ours.load(len(standard.prompt.tokens), **references(ours.host))
    except BestiaryError:
        return [], []
    program = plain.engine.network.program
    ropes = dict.fromkeys(arg for i in program.instructions for arg in i.args if isinstance(arg, Rope))
    calls = plain.capture(name, standard.prompt.tokens, standard.prompt.chunks, standard.instead)
    return calls, list(ropes)


def _pairs(
    row: Row, own: Seen, tensors: dict[str, Tensor], fits: Callable[[Tensor, Tensor], bool]
) -> Iterator[Finding]:
    """Two tensors of the reference that are one on our side, up to the tensor that is wrong."""
    for names in own.groups:
        known = [name for name in names if name in tensors]
        for name in known[1:]:
            one, other = tensors[known[0]], tensors[name]
            if one.numel() == other.numel() and fits(one.reshape(other.shape), other):
                continue
            text = f"{known[0]} and {name} are one tensor here and two in the reference"
            paths = [one.removesuffix(".input") for one in known if one.endswith(".input")]
            unused = next((path for path in paths if path in tensors and path not in own.tensors), None)
            if unused is not None:
                yield Finding(f"{text}: {unused} is not applied", MODEL)
            else:
                yield Finding(f"{text}: modules are exchanged", CONVERT)
            return
        if row.name in names:
            return


def _weights(calls: Sequence[Captured], weights: dict[str, Tensor], argued: Sequence[Finding]) -> Iterator[Finding]:
    """Whether the weights that the call reads are the reference's."""
    op: OpDeclaration[..., Any] = calls[0].op
    if argued or op.name != "linear" or "weight" not in weights:
        return
    # Of a merged product, those of the features that were asked for.
    ours = calls[0].select((calls[0].args[op.parameters.index("weight")].float().cpu().t(),)).t()
    theirs = weights["weight"]
    if ours.shape == theirs.shape:
        if bool(((ours - theirs).abs() <= 1e-2 * theirs.abs()).all()):
            yield Finding("the weight is the reference's: what is done with it differs", MODEL)
        else:
            yield Finding("the weight is not the reference's", CONVERT)
