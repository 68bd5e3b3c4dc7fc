"""What the error of a tensor looks like."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from bestiary.core.diff.arguments import other_arguments, replay, solved_eps
from bestiary.core.diff.compare import Row, Standard
from bestiary.core.diff.open import Ours, references
from bestiary.core.diff.patterns import CONVERT, MODEL, Case, Finding, patterns
from bestiary.core.errors import BestiaryError
from bestiary.core.ops.declare import OpDeclaration
from bestiary.core.rope import Rope
from bestiary.core.sides.engine_side import Captured, EngineSide
from bestiary.core.sides.side import Seen, Side
from bestiary.core.sides.transformers_side import TransformersSide
from bestiary.layers import Attention


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
    case = Case(row.name, found, wanted, fits, tensors, own.tensors, weights, prompt, standard.coarsest)
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
    if not argued:
        argued = list(_turned_another(row, calls, side, tensors, is_target))
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
            elif any(_given_to_another(given, names, own, tensors, fits) for given in (one, other)):
                yield Finding(f"{text}: modules are exchanged", CONVERT)
            else:
                yield Finding(text, MODEL)
            return
        if row.name in names:
            return


def _given_to_another(
    one: Tensor, names: Sequence[str], own: Seen, tensors: dict[str, Tensor], fits: Callable[[Tensor, Tensor], bool]
) -> bool:
    """Whether the reference gives a tensor to a module of ours that is given another one here."""
    inputs = [name for name in tensors if name.endswith(".input") and name in own.tensors and name not in names]
    given = [tensors[name] for name in inputs if tensors[name].numel() == one.numel()]
    return any(fits(one.reshape(other.shape), other) for other in given)


def _turned_another(
    row: Row,
    calls: Sequence[Captured],
    side: EngineSide,
    tensors: dict[str, Tensor],
    is_target: Callable[[Tensor], bool],
) -> Iterator[Finding]:
    """The reference turns what the weights of another module of ours make. Where core's attention is to turn it, weights are
    exchanged; an attention of the plugin's own may have exchanged what they make."""
    path = row.name.partition(".rope.")[0].partition(".cache.")[0]
    size = sum(call.args[0].numel() for call in calls)
    if calls[0].op.name != "rope":
        return
    for name in (f"{path}.{one}" for one in "qkv"):
        x = tensors.get(name)
        if x is None or x.numel() != size:
            continue
        made = [call._replace(args=(_like(x[call.rows], call.args[0]), *call.args[1:])) for call in calls]
        if is_target(replay(made)):
            core = isinstance(side.engine.network.module.get_submodule(path), Attention)
            text = f"the reference's is what rope makes of {name}, ours of another"
            yield Finding(f"{text}: weights are exchanged", CONVERT) if core else Finding(text, MODEL)
            return


def _like(x: Tensor, arg: Tensor) -> Tensor:
    return x.to(arg).reshape(arg.shape)


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
