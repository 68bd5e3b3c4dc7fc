"""A recording as JSON."""

from __future__ import annotations

from pydantic import Field

from bestiary.core.observe.calls import Call
from bestiary.core.observe.record import Recording
from bestiary.core.observe.recorder import Step
from bestiary.core.observe.summary import Row, by_kernel, by_op
from bestiary.core.reports.schema import JsonReport, ReportPart


class TraceRoofs(ReportPart):
    """What the device can do, measured in the same run."""

    copy_bytes_per_s: float = Field(description="bytes a second that a large copy reads and writes")
    read_bytes_per_s: float = Field(description="bytes a second that a sum over a large tensor reads")
    flops_per_s: float = Field(description="flops a second of large square products in the compute dtype")


class TraceSum(ReportPart):
    """The calls of one name."""

    name: str = Field(description="the op, or op=kernel")
    calls: int = Field(description="how many")
    seconds: float = Field(description="in all of them together, in s, each alone on the device")
    share: float = Field(description="of the time in all calls, 0 to 1")
    flops: int | None = Field(
        description="additions, multiplications and functions; null where the op declares no cost"
    )
    bytes: int = Field(description="read and written; of all its tensors where the op declares no cost")
    bytes_per_s: float = Field(description="bytes a second")
    flops_per_s: float | None = Field(description="flops a second; null where flops are not known")
    roof_fraction: float | None = Field(
        description="least time that the roofs allow, call by call, over seconds; above 1 where data lies in a cache"
    )


class TraceCall(ReportPart):
    """One call."""

    op: str = Field(description="the op")
    kernel: str = Field(description="what ran it; torch for a function of torch's")
    module: str = Field(description="path of the module that called it")
    takes: str = Field(description="dtypes and shapes of its tensors")
    gives: str = Field(description="dtypes and shapes of its results")
    began_s: float = Field(description="s since the recording began")
    seconds: float = Field(description="on the device, in s")
    flops: int | None = Field(description="as for the sums")
    bytes: int = Field(description="as for the sums")


class TraceStep(ReportPart):
    """One step."""

    number: int = Field(description="counted from 1")
    kind: str = Field(description="prefill, decode or mixed")
    tokens: int = Field(description="that it computed")
    sequences: int = Field(description="that it computed tokens of")
    began_s: float = Field(description="s since the recording began")
    seconds: float = Field(description="to the end of its last call, in s")
    calls_s: float = Field(description="in its calls, in s")
    calls: list[TraceCall] = Field(description="the calls in their order; empty for steps that were not to be listed")


class TraceReport(JsonReport):
    """``bestiary trace``."""

    schema_name = "trace"

    model: str = Field(description="as it was named")
    device: str = Field(description="where it ran")
    dtype: str = Field(description="that it computes in")
    requests: int = Field(description="that ran together")
    prompt_tokens: int = Field(description="of all requests together")
    output_tokens: int = Field(description="of all requests together")
    wall_s: float = Field(description="of the recorded run, in s")
    plain_wall_s: float = Field(description="of the same run without recording, in s")
    calls_s: float = Field(description="in calls, in s")
    outside_s: float = Field(description="outside of calls, in s: the host's work, sampling, the recording itself")
    roofs: TraceRoofs = Field(description="what the device can do")
    ops: list[TraceSum] = Field(description="by op, the longest first")
    kernels: list[TraceSum] = Field(description="by op and kernel, the longest first")
    steps: list[TraceStep] = Field(description="in their order")


def report(model: str, device: str, found: Recording, listed: list[Step]) -> TraceReport:
    """A recording, with the calls of the listed steps."""
    roofs = found.roofs
    return TraceReport(
        model=model,
        device=device,
        dtype=roofs.dtype,
        requests=len(found.outputs),
        prompt_tokens=sum(len(out.prompt_token_ids) for out in found.outputs),
        output_tokens=sum(len(out.outputs[0].token_ids) for out in found.outputs),
        wall_s=found.wall,
        plain_wall_s=found.plain_wall,
        calls_s=found.in_calls,
        outside_s=found.outside,
        roofs=TraceRoofs(copy_bytes_per_s=roofs.copy, read_bytes_per_s=roofs.read, flops_per_s=roofs.flops),
        ops=[_sum(row) for row in by_op(found.calls, roofs)],
        kernels=[_sum(row) for row in by_kernel(found.calls, roofs)],
        steps=[_step(step, step in listed) for step in found.steps],
    )


def _sum(row: Row) -> TraceSum:
    return TraceSum(
        name=row.name,
        calls=row.calls,
        seconds=row.seconds,
        share=row.share,
        flops=row.flops,
        bytes=row.bytes,
        bytes_per_s=row.bandwidth,
        flops_per_s=row.rate,
        roof_fraction=row.roof,
    )


def _step(step: Step, listed: bool) -> TraceStep:
    return TraceStep(
        number=step.number,
        kind=step.kind,
        tokens=step.tokens,
        sequences=step.sequences,
        began_s=step.began,
        seconds=step.seconds,
        calls_s=step.in_calls,
        calls=[_call(call) for call in step.calls] if listed else [],
    )


def _call(call: Call) -> TraceCall:
    return TraceCall(
        op=call.op,
        kernel=call.kernel,
        module=call.module,
        takes=call.takes,
        gives=call.gives,
        began_s=call.began,
        seconds=call.seconds,
        flops=call.flops,
        bytes=call.bytes,
    )
