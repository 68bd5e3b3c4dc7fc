"""Who is to blame, from what the bisection found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bestiary.core.diff.arguments import plainly
from bestiary.core.diff.bisect import Outcome, Variant
from bestiary.core.diff.compare import Comparison, Reading, Row, Spoiler
from bestiary.core.diff.failures import Failure
from bestiary.core.diff.few_bits import Search
from bestiary.core.diff.open import Ours
from bestiary.core.diff.patterns import MODEL, Finding
from bestiary.core.plugins import PluginHost
from bestiary.core.program.calls import REFERENCE
from bestiary.core.rope import Rope
from bestiary.core.sides.engine_side import EngineSide
from bestiary.core.sides.side import Made, Side
from bestiary.core.sides.transformers_side import TransformersSide

Blame = Literal[
    "nothing",
    "cache",
    "quantization",
    "kernel",
    "fusion",
    "options",
    "accumulation",
    "rounding",
    "plugin",
    "models",
    "sum",
    "undecided",
]


@dataclass(frozen=True)
class Verdict:
    """What is to blame.

    Args:
        blame: ``nothing``: all is within rounding; ``cache``: what the KV cache stores in few bits; ``quantization``: of weights; ``options``: it takes several changes at once; ``plugin``: the model's;
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
    comparison: Comparison,
    outcomes: Sequence[Outcome],
    found: Sequence[Finding],
    ours: Ours,
    side: Side,
    strangers: str | None = None,
    few_bits: Verdict | None = None,
) -> Verdict:
    """Name what is to blame.

    Args:
        outcomes: of the bisection, where a place is out of tolerance.
        found: what the error at that place looks like.
        side: what ours is held against.
        strangers: why the two sides are not of one source, if they are not.
        few_bits: where what they lose is all that is wrong.
    """
    row, spoilers, wrong = comparison.first, comparison.spoilers, few_bits
    if row is not None and wrong is None:
        wrong = _of_row(row, outcomes, found, ours, side, strangers)
    if spoilers:
        return _of_spoilers(spoilers, row, wrong, ours.host)
    if wrong is not None:
        return wrong
    carried = comparison.carried
    if carried is None:
        return Verdict("nothing", "nothing: all tensors are within tolerance")
    text = f"no place alone: each is within rounding, but what adds up is not, from {carried.name} on"
    return Verdict("sum", text)


def after_failures(failures: Sequence[Failure], rest: Verdict, ours: Ours) -> Verdict:
    """Calls that raise come first; then what is wrong with what ran in their place.

    Args:
        rest: of that.
        ours: our side as it was before.
    """
    if not failures:
        return rest
    host, texts = ours.host, []
    for one in failures:
        whose = f"{one.by.op}, which the model plugin calls" if one.by.kernel is None else _named(*one.by[:2], host)[0]
        texts.append(f"{whose}{', in decodes only' if one.decodes_only else ''}: it {one.text}")
    if rest.blame != "nothing":
        texts.append(f"and then, {rest.text}")
    first = failures[0].by
    blame: Blame = "plugin" if first.kernel is None else "kernel"
    owner = host.model(ours.manifest.checkpoint.model) if first.kernel is None else None
    distribution = origin_of(host, first) if owner is None else str(host.origin(owner))
    part = MODEL if blame == "plugin" else rest.part
    return Verdict(blame, "; ".join(texts), distribution, rest.findings, part)


def of_few_bits(search: Search) -> Verdict | None:
    """What is stored in few bits, where that is all that is wrong."""
    loss = search.quantization
    if search.lost is None:
        return None
    if loss is None:
        return Verdict("cache", search.lost)
    if not loss.within:
        return Verdict("quantization", loss.text)
    cache = search.side.few_bits if search.plain is not None and "kv_dtype" in search.plain.options else None
    beside = f"; the cache's {cache} comes to that" if cache else ""
    return Verdict("quantization", f"{loss.text}{beside}; {search.lost.partition('; ')[2]}")


def _of_row(
    row: Row, outcomes: Sequence[Outcome], found: Sequence[Finding], ours: Ours, side: Side, strangers: str | None
) -> Verdict:
    blame, text, distribution = _blame(row, outcomes, ours, side, strangers)
    texts = tuple(dict.fromkeys(finding.text for finding in found))
    part = None
    if blame == "plugin":
        part = next((finding.part for finding in found if finding.part), MODEL)
        text += f": {row.name}{_call(row.by)}; look in its {part}"
    if row.reading.off_scale:
        text += f"; all of {row.name} is {row.reading.scale.factor:.4g} times the reference"
    return Verdict(blame, text, distribution, texts, part)


def _of_spoilers(spoilers: Sequence[Spoiler], row: Row | None, wrong: Verdict | None, host: PluginHost) -> Verdict:
    """Who changes his inputs is seen at it, and nothing after him suffers: what else is wrong is another's mistake, or
    another of his."""
    texts, named = [], set[str]()
    for one in spoilers:
        kernel, _ = _named(one.by.op, one.by.kernel, host)
        named.add(kernel)
        texts.append(f"{kernel}{', in decodes only' if one.decodes_only else ''}: it {one.text}")
    if wrong is not None and row is not None and not any(wrong.text.startswith(kernel) for kernel in named):
        texts.append(f"and of {row.name}, {wrong.text}")
    findings, part = ((), None) if wrong is None else (wrong.findings, wrong.part)
    return Verdict("kernel", "; ".join(texts), origin_of(host, spoilers[0].by), findings, part)


def origin_of(host: PluginHost, made: Made | None) -> str | None:
    """The distribution, with its version, whose kernel made a tensor."""
    if made is None or made.kernel is None:
        return None
    if made.kernel == REFERENCE:
        return str(host.origin(host.op(made.op)))
    return str(host.origin(host.kernel(made.op, made.kernel)))


def _blame(
    row: Row, outcomes: Sequence[Outcome], ours: Ours, side: Side, strangers: str | None
) -> tuple[Blame, str, str | None]:
    host, gone = ours.host, [outcome.variant for outcome in outcomes if outcome.gone]
    if right := next((v for v in gone if v.kind == "kernel" and v.subject.endswith(f"={REFERENCE}")), None):
        return "kernel", *_kernel(row, right, host)
    if fusions := [variant.subject for variant in gone if variant.kind == "fusion"]:
        (fusion,) = (one for one in host.fusions() if one.name == fusions[0])
        return "fusion", f"fusion {fusion.name} of {host.origin(fusion)}", str(host.origin(fusion))
    if any(variant.kind == "reference" for variant in gone):
        others = ", ".join(str(variant) for variant in gone if variant.kind != "reference")
        text = "kernels or fusions together: with all references it is gone"
        return "options", f"{text}, and also {others}" if others else text, None
    if plain := next((variant.subject for variant in gone if variant.kind == "cache"), None):
        return (
            "cache",
            f"the cache's few bits, or what reads and writes them: with the KV cache in {plain} it is gone",
            None,
        )
    if weights := next((variant for variant in gone if variant.kind == "quantization"), None):
        return "quantization", f"quantization, or what reads quantized weights: with {weights} it is gone", None
    if any(variant.kind == "accumulation" for variant in gone):
        by = f" of {row.by.op}={row.by.kernel}" if row.by else ""
        return "accumulation", f"16-bit sums{by}: with sums in float32 it is gone", origin_of(host, row.by)
    if any(variant.kind == "dtype" for variant in gone):
        return "rounding", "rounding: in float32 it is gone", None
    if problem := next((one.problem for one in outcomes if one.variant.kind == "reference" and one.problem), None):
        return "undecided", f"not decided: with all references it can't run here: {problem}", None
    place = f"with all our references they part at {row.name}{_call(row.by)}"
    if strangers is not None:
        return "models", f"not one model: {strangers}; {place}", None
    if not isinstance(side, TransformersSide):
        stored = isinstance(side, EngineSide) and side.few_bits
        whose = f"the other side, whose cache is in {stored}" if stored else "the other side"
        text = f"{whose}, or its weights or config: {place}"
        return "models", f"{text}; hold that side against its own references", None
    model = host.model(ours.manifest.checkpoint.model)
    return "plugin", f"the model plugin {host.origin(model)}", str(host.origin(model))


def _kernel(row: Row, right: Variant, host: PluginHost) -> tuple[str, str | None]:
    """The kernel in whose place the reference is right."""
    op = right.subject.partition("=")[0]
    text, whose = _named(op, right.instead_of, host)
    where = ""
    if len(row.readings) > 1:
        wrong = [kind for kind, reading in row.readings.items() if not reading.excess <= 1 or _alike(reading, row)]
        where = f", in {'decodes' if wrong == ['decode'] else 'steps of many tokens'} only" if len(wrong) == 1 else ""
    return text + where, whose


def _alike(reading: Reading, row: Row) -> bool:
    """Whether a reading is off by the row's factor, though it has too few tokens to be judged by it alone."""
    factor = row.reading.scale.factor - 1
    return row.reading.off_scale and abs(reading.scale.factor - 1 - factor) < abs(factor) / 2


def _named(op: str, kernel: str | None, host: PluginHost) -> tuple[str, str | None]:
    """A kernel for people, with the fusion that brought its op, and whose it is."""
    fused = next((one.name for one in host.fusions() if one.op == op), None)
    brought = f", which the fusion {fused} puts in" if fused else ""
    whose = origin_of(host, Made(op, kernel, ""))
    named = f"kernel {op}={kernel} of {whose}" if whose else f"the kernel of {op}"
    return named + brought, whose


def _call(made: Made | None) -> str:
    if made is None:
        return ""
    said = ", ".join(
        f"{name}={plainly(value)}" for name, value in made.arguments.items() if not isinstance(value, Rope)
    )
    return f" ({made.op}{', ' + said if said else ''})"
