"""The record of steps: it is bounded, and says how much there was; how long a step took."""

from types import SimpleNamespace

import pytest
from canary import Engine
from canary_numbers import alone

from bestiary.core.runtime import loop as loops
from bestiary.core.runtime.steps import StepRecorder


def test_the_last_steps_are_kept_and_all_are_counted():
    recorder = StepRecorder(limit=3)
    pools = [SimpleNamespace(num_used=2), SimpleNamespace(num_used=5)]
    for number in range(5):
        batch = SimpleNamespace(message=SimpleNamespace(decodes=number), prompt_tokens=10 * number)
        scheduler = SimpleNamespace(
            running=[1, 2], waiting=[1], num_preemptions=number, tables=SimpleNamespace(pools=pools)
        )
        recorder.saw(batch, scheduler, float(number), 0.5 if number else None)
    assert recorder.seen == 5 and [step.at for step in recorder.steps] == [2.0, 3.0, 4.0]
    assert recorder.steps[-1] == (4.0, 0.5, 4, 40, 2, 1, 7, 4)


@pytest.mark.parametrize("overlaps", [False, True], ids=["one by one", "ahead"])
@pytest.mark.parametrize("ending", ["length", "end token", "abort", "abort of one that waits"])
def test_a_time_in_which_nothing_was_asked_for_is_no_steps(monkeypatch, ending, overlaps):
    """Neither the pace of prompts nor a figure may take it for one."""
    now = [0.0]
    monkeypatch.setattr(loops, "time", SimpleNamespace(monotonic=lambda: now[0], perf_counter=lambda: 0.0))
    engine, told = Engine(overlaps=overlaps), []
    engine.loop.recorder = StepRecorder()
    engine.scheduler.pace.saw = lambda decodes, prompt_tokens, seconds: told.append(seconds)

    def steps(most=99):
        while most and not engine.loop.idle:
            now[0] += 1
            engine.step()
            most -= 1

    stops = alone(engine.groups, [4, 5, 6], 4)[3:] if ending == "end token" else None
    asked = engine.submit([4, 5, 6], 6, stop_token_ids=stops)
    steps(3 if ending == "abort" else 99)
    if ending == "abort of one that waits":
        asked = engine.submit([7, 8, 9])
    if "abort" in ending:
        engine.loop.abort(asked)
    assert engine.loop.idle and asked.finish_reason == {"length": "length", "end token": "stop"}.get(ending, "abort")
    before = len(told)
    now[0] += 1000
    engine.submit([10, 11, 12], 6)
    steps()
    assert len(told) >= before + 5, "steps that follow each other"
    assert told == [seconds for seconds, _ in engine.loop.meters.times]
    assert told == [step.seconds for step in engine.loop.recorder.steps if step.seconds is not None] == [1] * len(told)
