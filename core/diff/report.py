"""A comparison as JSON that others may rely on."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field

from bestiary.core.diff.arguments import plainly
from bestiary.core.diff.bisect import Kind, Outcome
from bestiary.core.diff.compare import Reading, Row, Spoiler
from bestiary.core.diff.failures import Failure
from bestiary.core.diff.measure import Error
from bestiary.core.diff.quantization import Loss
from bestiary.core.diff.run import Result
from bestiary.core.reports.schema import JsonReport, ReportPart


class ErrorReport(ReportPart):
    """How far a tensor lies from the reference's. Null: infinitely far, or not finite."""

    max_absolute: float = Field(description="largest absolute difference of two numbers, in the tensor's own unit")
    relative: float = Field(description="norm of the difference over the norm of the reference, a ratio")
    cosine: float = Field(description="cosine of the angle between the two, from -1 to 1")
    excess: float = Field(description="the error over what is allowed, a ratio: above 1 is no rounding")
    allowed_relative: float = Field(description="what is allowed of `relative`, a ratio")


class ReadingReport(ReportPart):
    """A tensor in one kind of step."""

    step: Literal["prefill", "decode"] = Field(description="steps of several tokens, or of one")
    op: str | None = Field(description="the op that made it; null where torch did")
    kernel: str | None = Field(description="the kernel that ran the op; null where torch did")
    scale: float = Field(
        description="projection of the tensor on the reference, with right inputs: by what factor all of it is too large"
    )
    allowed_scale: float = Field(description="how far from 1 rounding may move `scale`; null: too few tokens to tell")
    own: ErrorReport = Field(description="error that was added there: what the tensor is made of was the reference's")
    accumulated: ErrorReport = Field(description="error of the tensor as the model makes it")


class PlaceReport(ReportPart):
    """A tensor."""

    name: str = Field(description="name of the tensor, as taps take it")
    layer: int | None = Field(description="number of its layer, from 0; null outside of layers")
    place: str = Field(description="name within the layer")
    within: bool = Field(description="whether the own error is within tolerance")
    prompt: int = Field(description="number of the prompt of these errors, from 0: the one with the largest own error")
    steps: list[ReadingReport] = Field(description="errors by kind of step")


class FirstReport(ReportPart):
    """The first tensor that is out of tolerance."""

    name: str = Field(description="name of the tensor")
    op: str | None = Field(description="the op that made it")
    kernel: str | None = Field(description="the kernel that ran it")
    distribution: str | None = Field(description="distribution and version of the kernel")
    module: str | None = Field(description="path of the module whose forward called it")
    call: str | None = Field(description="the op with its arguments' dtypes and shapes; T tokens, R rows with logits")
    arguments: dict[str, str] = Field(description="the arguments that are no tensors, as text, by parameter")


class SpoiledReport(ReportPart):
    """A kernel that changes an input which its op's declaration does not let it change; the input was put back."""

    op: str = Field(description="the op")
    kernel: str | None = Field(description="the kernel that ran it")
    distribution: str | None = Field(description="distribution and version of the kernel")
    parameter: str = Field(description="the op's parameter whose tensor was changed")
    cached: bool = Field(description="it is a cache, and what it holds of tokens of other steps was changed")
    module: str = Field(description="path of the module whose forward made the first such call")
    changed: int = Field(description="numbers that were changed at the first such call, a count")
    total: int = Field(description="numbers of that tensor, a count")
    calls: int = Field(description="number of such calls")
    decodes_only: bool = Field(description="only in steps of one token")


class OutcomeReport(ReportPart):
    """What one changed option did to the first tensor's error."""

    change: str = Field(description="what was changed")
    kind: Kind = Field(description="kind of the option")
    excess: float | None = Field(
        description="own error over what is allowed, a ratio; null: it could not run, or is infinite"
    )
    gone: bool = Field(description="whether the tensor and all that is made before it are within tolerance then")
    first: str | None = Field(description="first tensor out of tolerance then; null: none")
    problem: str | None = Field(description="why it could not run; null: it could")


class FailedReport(ReportPart):
    """A call that raises."""

    place: str = Field(description="name of the nearest tensor that it makes, or that is made of what it makes")
    op: str = Field(description="the op, or torch's function")
    kernel: str | None = Field(description="the kernel that ran it; null for a function of torch's")
    distribution: str | None = Field(description="distribution and version of the kernel")
    module: str = Field(description="path of the module whose forward called it")
    call: str | None = Field(description="the op with its arguments' dtypes and shapes; T tokens, R rows with logits")
    raised: str = Field(description="class and text of the exception, 300 characters of it at most")
    decodes_only: bool = Field(description="only in steps of one token")
    bisection: list[OutcomeReport] = Field(
        description="what was changed to get past it; `excess` and `gone` are of `place`"
    )
    instead: str | None = Field(
        description="the change with which all else of the document was compared; null: nothing helped"
    )


class VerdictReport(ReportPart):
    """What is to blame."""

    blame: Literal[
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
    ] = Field(
        description="kind of what is to blame: nothing; what a KV cache of few bits loses; what quantized weights lose, or one that is not what its method makes; a kernel; a fusion; kernels and fusions together; sums in 16 bit; the "
        "rounding of the dtype; the model's plugin; the other side, or that it is another model; errors that only add up; what could not be decided"
    )
    text: str = Field(description="the verdict for people")
    distribution: str | None = Field(description="distribution and version of what is to blame")
    file: str | None = Field(description="the file of a model plugin in which to look")
    findings: list[str] = Field(description="what the error looks like, each sentence tested on the numbers")


class StrangeReport(ReportPart):
    """A quantized weight that is not what its method makes of the plain one."""

    parameter: str = Field(description="name of the parameter")
    method: str = Field(description="name of its quantization method")
    share: float = Field(description="how much of it is too far, by blocks of 32 columns of a row, from 0 to 1")
    times: float = Field(description="how many times as far as the method makes it, at the worst block, a ratio")


class CostReport(ReportPart):
    """What the quantization of a part of the model costs."""

    part: str = Field(description="path of a layer, or of a module outside of layers")
    logits_error: float = Field(
        description="as `logits_error` of all, where the weights of this part alone are quantized"
    )


class QuantizationReport(ReportPart):
    """What quantized weights cost."""

    methods: str = Field(description="the methods, with how many weights have each, as text")
    logits_error: float = Field(
        description="median over tokens of rms(found - exact) / rms(exact - mean) of the logits, a ratio, with a plain KV cache"
    )
    allowed: float = Field(
        description="of it, a ratio: twice the error that random errors of the size of the methods' bounds cause in this model"
    )
    judged: bool = Field(description="whether there were plain weights to judge the quantized ones by")
    strange: list[StrangeReport] = Field(description="weights that are not what their method makes, the farthest first")
    costs: list[CostReport] = Field(description="by layer, and by module outside of layers")


class DiffReport(JsonReport):
    """What ``bestiary diff --json`` prints."""

    schema_name: ClassVar[str] = "diff"

    ours: str = Field(description="our side")
    against: str = Field(description="the side that it is held against")
    device: str = Field(description="device of our side")
    tolerance_dtype: str = Field(description="dtype of either side with the fewest digits, whose rounding is allowed")
    few_bits: str | None = Field(
        description="what was done about weights and a KV cache of few bits, whose loss would hide mistakes; null: nothing"
    )
    prompts: list[int] = Field(description="number of tokens of each prompt")
    within: bool = Field(description="whether all tensors are within tolerance")
    places: list[PlaceReport] = Field(description="tensors that both sides have, in the order of execution")
    missing: list[str] = Field(description="tensors that only the reference shows: names")
    spoiled: list[SpoiledReport] = Field(description="kernels that changed their inputs, in the order of execution")
    failed: list[FailedReport] = Field(
        description="calls of our side that raised, in the order in which they were found; all else is of our side with what ran in their place"
    )
    first: FirstReport | None = Field(description="the first tensor out of tolerance; null: none")
    bisection: list[OutcomeReport] = Field(description="what each changed option did to it")
    quantization: QuantizationReport | None = Field(
        description="what quantized weights cost, where storage in few bits is all that is wrong; null: something else is, or there are none"
    )
    verdict: VerdictReport = Field(description="what is to blame")

    @classmethod
    def of(cls, result: Result) -> DiffReport:
        """From what was found."""
        comparison, verdict = result.comparison, result.verdict
        return cls(
            ours=result.ours,
            against=result.against,
            device=result.device,
            tolerance_dtype=str(result.coarsest).removeprefix("torch."),
            few_bits=result.few_bits or None,
            prompts=[len(prompt.tokens) for prompt in result.prompts],
            within=verdict.blame == "nothing",
            places=[_place(row) for row in comparison.rows],
            missing=list(comparison.missing),
            spoiled=[_spoiled(one, name) for one, name in zip(comparison.spoilers, result.spoiled_by, strict=True)],
            failed=[_failed(one, name) for one, name in zip(result.failures, result.failed_by, strict=True)],
            first=_first(comparison.first, result.made_by) if comparison.first else None,
            bisection=[_outcome(outcome) for outcome in result.outcomes],
            quantization=_quantization(result.quantization) if result.quantization else None,
            verdict=VerdictReport(
                blame=verdict.blame,
                text=verdict.text,
                distribution=verdict.distribution,
                file=verdict.part,
                findings=list(verdict.findings),
            ),
        )


def _place(row: Row) -> PlaceReport:
    steps = [_reading(row, kind) for kind in row.readings]
    return PlaceReport(
        name=row.name, layer=row.layer, place=row.place, within=row.excess <= 1, prompt=row.prompt, steps=steps
    )


def _reading(row: Row, kind: str) -> ReadingReport:
    reading, made = row.readings[kind], row.made.get(kind)
    return ReadingReport(
        step="decode" if kind == "decode" else "prefill",
        op=made.op if made else None,
        kernel=made.kernel if made else None,
        scale=reading.scale.factor,
        allowed_scale=reading.allowed.off_scale(reading.scale),
        own=_error(reading.own, reading.excess, reading),
        accumulated=_error(reading.accumulated, reading.accumulated_excess, reading, carried=True),
    )


def _error(error: Error, excess: float, reading: Reading, *, carried: bool = False) -> ErrorReport:
    allowed = reading.allowed_accumulated if carried else reading.allowed
    return ErrorReport(
        max_absolute=error.largest,
        relative=error.relative,
        cosine=error.cosine,
        excess=excess,
        allowed_relative=allowed.relative,
    )


def _first(row: Row, distribution: str | None) -> FirstReport:
    by = row.by
    return FirstReport(
        name=row.name,
        op=by.op if by else None,
        kernel=by.kernel if by else None,
        distribution=distribution,
        module=by.scope if by else None,
        call=by.call if by else None,
        arguments={name: plainly(value) for name, value in by.arguments.items()} if by else {},
    )


def _spoiled(one: Spoiler, distribution: str | None) -> SpoiledReport:
    first = one.first
    return SpoiledReport(
        op=one.by.op,
        kernel=one.by.kernel,
        distribution=distribution,
        parameter=first.parameter,
        cached=first.cached,
        module=one.by.scope,
        changed=first.changed,
        total=first.total,
        calls=one.calls,
        decodes_only=one.decodes_only,
    )


def _failed(one: Failure, distribution: str | None) -> FailedReport:
    return FailedReport(
        place=one.place,
        op=one.by.op,
        kernel=one.by.kernel,
        distribution=distribution,
        module=one.by.scope,
        call=one.by.call or None,
        raised=one.raised,
        decodes_only=one.decodes_only,
        bisection=[_outcome(outcome) for outcome in one.outcomes],
        instead=str(one.instead) if one.instead else None,
    )


def _quantization(loss: Loss) -> QuantizationReport:
    return QuantizationReport(
        methods=loss.methods,
        logits_error=loss.error,
        allowed=loss.allowed,
        judged=loss.judged,
        strange=[StrangeReport(**one._asdict()) for one in loss.strange],
        costs=[CostReport(part=one.part, logits_error=one.error) for one in loss.costs],
    )


def _outcome(outcome: Outcome) -> OutcomeReport:
    excess = outcome.excess
    return OutcomeReport(
        change=str(outcome.variant),
        kind=outcome.variant.kind,
        excess=excess if excess is None or math.isfinite(excess) else None,
        gone=outcome.gone,
        first=outcome.first,
        problem=outcome.problem or None,
    )
