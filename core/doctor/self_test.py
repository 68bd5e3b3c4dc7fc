"""Every kernel that a plan would choose, run beside its op's reference in a process of its own, for a few seconds."""

from __future__ import annotations

import json
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bestiary.core.doctor.findings import Finding
from bestiary.core.errors import ConfigError
from bestiary.core.home import gib
from bestiary.core.isolated import Died, Isolated

if TYPE_CHECKING:
    from bestiary.core.doctor.trial_calls import Subject, TrialCall
    from bestiary.core.plugins import PluginHost

BUDGET = 5.0  # seconds of calls, the start of the process not counted
SILENCE = 10.0  # seconds without a sign of life after which a call counts as hanging: a kernel may be compiled in it
_DEATHS = 4  # of the process, after which the test ends
_SHARE = 0.25  # of the free memory, for one call
_TYPICAL = ("bfloat16", "float32")


@dataclass
class _Seen:
    """What came of one kernel's calls on one device."""

    calls: int = 0
    worst: float = 0.0


@dataclass
class _Outcome:
    seen: dict[tuple[str, str, str], _Seen] = field(default_factory=dict)
    faults: list[Finding] = field(default_factory=list)
    faulty: set[tuple[str, str, str]] = field(default_factory=set)
    large: list[TrialCall] = field(default_factory=list)
    late: list[TrialCall] = field(default_factory=list)
    took: float = 0.0


def self_test(
    load: Callable[[], PluginHost],
    model: str | None = None,
    said: Mapping[str, Any] | None = None,
    *,
    budget: float = BUDGET,
    silence: float = SILENCE,
) -> Iterator[Finding]:
    """Run each kernel that a default plan may choose, on a model's own calls, or on typical ones of all devices.

    Args:
        model: a local model; None for what is typical.
        said: its build options.
        budget: seconds for all calls together.
        silence: seconds after which a call counts as hanging.
    """
    from bestiary.core.doctor.trial_calls import calls_of, in_order
    from bestiary.core.runtime.ranks import check_importable

    host = load()
    try:
        check_importable(host.plugin_names())
    except ConfigError as error:
        text = f"is not made: {error.subject} is {error.found}, and kernels are run in a process of their own"
        yield Finding("self-test", text, "note")
        return
    subjects = _subjects(model, said or {})
    calls = in_order([call for subject in subjects for call in calls_of(subject, host)])
    outcome = _Outcome()
    try:
        _run(calls, subjects, host, outcome, budget, silence)
    except Died as death:
        yield Finding("self-test", f"its process can't be used, it {_how(death)}", "error")
    yield from outcome.faults
    yield from _ops(outcome)
    yield from _summary(calls, outcome, budget)


def _subjects(model: str | None, said: Mapping[str, Any]) -> tuple[Subject, ...]:
    from bestiary.core import device as devices
    from bestiary.core.doctor.trial_calls import Subject

    if model is not None:
        return (Subject(model, json.dumps(dict(said), sort_keys=True)),)
    kinds = devices.available()
    return tuple(Subject(None, json.dumps({"device": kind, "dtype": dtype})) for kind in kinds for dtype in _TYPICAL)


def _run(
    calls: list[TrialCall],
    subjects: tuple[Subject, ...],
    host: PluginHost,
    outcome: _Outcome,
    budget: float,
    silence: float,
) -> None:
    from bestiary.core import device as devices
    from bestiary.core.doctor import self_test_child as child

    room = {name: devices.free_memory(devices.choose(name)) * _SHARE for name in {call.device for call in calls}}
    ready = child.SelfTestJob(host.plugin_names(), tuple(host.preferences().items()), subjects)
    deaths, started = 0, False
    with Isolated(f"{child.__name__}:serve", timeout=silence) as process:
        for call in calls:
            key = call.device, call.op, call.kernel
            if key in outcome.faulty:
                continue
            if outcome.took > budget or deaths >= _DEATHS:
                outcome.late.append(call)
                continue
            if call.nbytes > room[call.device]:
                outcome.large.append(call)
                continue
            if not started:
                process.run(ready)
                started = True
            began = time.monotonic()
            try:
                answer = process.run(child.SelfTestJob(ready.plugins, ready.prefer, subjects, call))
            except Died as death:
                answer, started, deaths = {"wrong": f"its process {_how(death)}"}, False, deaths + 1
            outcome.took += time.monotonic() - began
            _note(outcome, call, answer)


def _note(outcome: _Outcome, call: TrialCall, answer: Mapping[str, Any]) -> None:
    key = call.device, call.op, call.kernel
    if "wrong" in answer:
        outcome.faulty.add(key)
        text = f"on {call.device}: {answer['wrong']}, at {call} (choose another with --kernel {call.op}=NAME)"
        outcome.faults.append(Finding(f"{call.op}={call.kernel}", text, "error"))
        return
    seen = outcome.seen.setdefault(key, _Seen())
    seen.calls, seen.worst = seen.calls + 1, max(seen.worst, float(answer["error"]))


def _ops(outcome: _Outcome) -> Iterator[Finding]:
    """A line an op: its kernels that were right."""
    several = len({device for device, _, _ in outcome.seen}) > 1
    lines: dict[str, list[str]] = {}
    for (device, op, kernel), seen in sorted(outcome.seen.items()):
        if (device, op, kernel) not in outcome.faulty:
            error = f"at most {seen.worst:.2g} of the tolerance" if seen.worst else "exactly"
            text = f"{kernel} right in {_count(seen.calls)}, {error}"
            lines.setdefault(f"{op} on {device}" if several else op, []).append(text)
    for subject, texts in lines.items():
        yield Finding(subject, "; ".join(texts))


def _summary(calls: list[TrialCall], outcome: _Outcome, budget: float) -> Iterator[Finding]:
    if not calls:
        yield Finding("self-test", "no kernel can run: the references do", "note")
        return
    done = sum(seen.calls for seen in outcome.seen.values()) + len(outcome.faults)
    yield Finding("self-test", f"{done} of {_count(len(calls))} made, in {outcome.took:.1f} of {budget:g} s")
    for what, left in (("no time was left for", outcome.late), ("too large for the free memory are", outcome.large)):
        if left:
            never = sorted({f"{one.op}={one.kernel}" for one in left if _key(one) not in outcome.seen})
            text = f"{what} {_count(len(left))} of up to {gib(max(one.nbytes for one in left))}"
            yield Finding("left out", text + (f"; never run: {', '.join(never)}" if never else ""), "note")


def _key(call: TrialCall) -> tuple[str, str, str]:
    return call.device, call.op, call.kernel


def _count(number: int) -> str:
    return f"{number} call" if number == 1 else f"{number} calls"


def _how(death: Died) -> str:
    """How the process ended, and where Python was: in the innermost frame outside of its own library."""
    frames = [line.strip() for line in death.last_words if line.lstrip().startswith("File ")]
    library = f'File "{sysconfig.get_path("stdlib")}'
    outside = [frame for frame in frames if not frame.startswith(library) or "site-packages" in frame]
    return death.how + (f" ({(outside or frames)[0]})" if frames else "")
