"""A recording in the trace-event format, which Perfetto and chrome://tracing draw: steps, and in each its calls."""

from __future__ import annotations

from typing import Any

from bestiary.core.observe.calls import Call
from bestiary.core.observe.record import Recording
from bestiary.core.observe.recorder import Step

# One process with one thread: steps and calls follow each other.
_WHERE = {"pid": 1, "tid": 1}


def chrome_trace(title: str, found: Recording) -> dict[str, Any]:
    """The document. Times are in microseconds since the recording began."""
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", **_WHERE, "args": {"name": title}},
        {"ph": "M", "name": "thread_name", **_WHERE, "args": {"name": "engine"}},
    ]
    for step in found.steps:
        events.append(_step(step))
        events += [_call(call) for call in step.calls]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _step(step: Step) -> dict[str, Any]:
    return {
        "ph": "X",
        "cat": "step",
        "name": f"step {step.number}: {step.kind}",
        "ts": step.began * 1e6,
        "dur": step.seconds * 1e6,
        **_WHERE,
        "args": {"tokens": step.tokens, "sequences": step.sequences, "calls": len(step.calls)},
    }


def _call(call: Call) -> dict[str, Any]:
    args: dict[str, Any] = {
        "kernel": call.kernel,
        "module": call.module,
        "takes": call.takes,
        "gives": call.gives,
        "bytes": call.bytes,
    }
    if call.flops is not None:
        args["flops"] = call.flops
    return {
        "ph": "X",
        "cat": "call",
        "name": call.op,
        "ts": call.began * 1e6,
        "dur": call.seconds * 1e6,
        **_WHERE,
        "args": args,
    }
