"""The record of steps: it is bounded, and says how much there was."""

from types import SimpleNamespace

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
