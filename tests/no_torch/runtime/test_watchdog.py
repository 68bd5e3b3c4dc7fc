"""A step that does not end is reported, then ends the engine; what only looks like one is left alone. C11, C21, C22."""

from __future__ import annotations

import logging
import threading

import pytest
from canary import Engine

from bestiary.core.errors import EngineError, UsageError
from bestiary.core.runtime.cache_groups import CacheGroup
from bestiary.core.runtime.pulse import Pulse
from bestiary.core.watchdog import StepLimits, Watchdog

PROMPTS = [[1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11, 12]]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Watched:
    """An engine on a clock of its own, whose steps can take long; the watchdog looks once in a second."""

    def __init__(self, limits: StepLimits | None = None, *, overlaps: bool = False) -> None:
        self.engine = Engine([CacheGroup(64, 4)], overlaps=overlaps)
        self.loop, self.clock = self.engine.loop, Clock()
        self.loop.pulse.clock = self.clock
        self.reports, self.given_up = 0, list[EngineError]()
        self.dog = Watchdog(self.loop.pulse, limits or StepLimits(), report=self.report, give_up=self.give_up)
        self.seconds: dict[int, float] = {}  # by number of the step
        forward = self.engine.executor.forward

        def slow(step):
            self.wait(self.seconds.get(step.number, 0))
            forward(step)

        self.engine.executor.forward = slow

    def report(self) -> None:
        self.reports += 1

    def give_up(self, error: EngineError) -> None:
        self.given_up.append(error)
        self.loop.give_up(error)
        self.known = {request.id: request.output for request in self.engine.requests}

    def wait(self, seconds: float, look: float = 1.0) -> None:
        for _ in range(round(seconds / look)):
            self.clock.now += look
            self.dog.look()

    def warm(self, copies: int = 1) -> int:
        """Run steps of all kinds; the number of the last."""
        self.run(copies)
        return self.engine.scheduler.number

    def run(self, copies: int = 1):
        requests = [self.engine.submit(prompt, 6) for prompt in PROMPTS * copies]
        self.engine.drain()
        return requests


@pytest.mark.parametrize("overlaps", [False, True], ids=["one by one", "ahead"])
def test_a_slow_step_is_seen_and_ends_nobody(overlaps, caplog):
    """C21: 60 seconds, above the warning and below the time-out."""
    watched = Watched(overlaps=overlaps)
    last = watched.warm()
    watched.seconds = {last + 4: 60}
    seen = []
    watched.report = lambda: seen.append(watched.loop.stats())
    watched.dog._report = watched.report
    with caplog.at_level(logging.WARNING):
        requests = watched.run()
        watched.wait(5)
    assert [(r.finish_reason, r.output) for r in requests] == [("length", watched.engine.expected(r)) for r in requests]
    assert not watched.given_up
    (stats,) = seen
    assert stats.stalled and stats.step_under_way == 30 and stats.running == 3
    assert watched.loop.stats().stalled is False and watched.loop.stats().step_under_way is None
    assert watched.loop.stats().since_last_step == 5
    said = [record.getMessage() for record in caplog.records if record.name.endswith("watchdog")]
    assert len(said) == 2, said
    assert f"step {last + 4} (3 requests, 3 tokens, 0 of these of prompts)" in said[0], "what the loop was at"
    assert "test_watchdog.py" not in said[0], "the thread that looks is not among the stacks"
    assert "has ended, after 60 s" in said[1]


def test_the_stacks_of_all_other_threads_are_logged(caplog):
    ready, leave = threading.Event(), threading.Event()

    def stuck_in_here():
        ready.set()
        leave.wait()

    thread = threading.Thread(target=stuck_in_here, name="a-thread-that-waits")
    thread.start()
    ready.wait()
    watched = Watched()
    watched.seconds = {watched.warm() + 2: 31}
    with caplog.at_level(logging.WARNING):
        watched.run()
    leave.set()
    thread.join()
    assert "thread a-thread-that-waits:" in caplog.text and "stuck_in_here" in caplog.text


@pytest.mark.parametrize("overlaps", [False, True], ids=["one by one", "ahead"])
def test_a_step_that_hangs_ends_the_engine_and_everyone_is_told_once(overlaps):
    watched = Watched(overlaps=overlaps)
    watched.seconds = {watched.warm(5) + 3: 1000}
    requests = [watched.engine.submit(prompt, 6) for prompt in PROMPTS * 5]
    with pytest.raises(EngineError, match=r"step \d+ \(.*\) does not end; found 120 seconds.*E-RUN-STUCK"):
        watched.loop.drain()
    assert len(watched.given_up) == 1 and watched.reports == 1
    for request in requests:
        assert request.finish_reason == "error" and "E-RUN-STUCK" in request.stop_reason
        assert watched.engine.answers[request.id].ends == 1
        assert request.output == watched.known[request.id], "nothing is added after the end"
    assert watched.loop.idle and watched.loop.stats().finished["error"] == len(requests)
    assert watched.loop.stats().running == watched.loop.stats().waiting == 0
    with pytest.raises(EngineError, match=r"takes no requests any more.*does not end.*E-RUN-DEAD"):
        watched.engine.submit([1, 2], 2)
    with pytest.raises(EngineError, match="E-RUN-STUCK"):
        watched.loop.step()


def test_the_first_step_of_its_kind_may_compile():
    watched = Watched()
    watched.seconds = {1: 290, 2: 1100}
    requests = watched.run()
    assert all(r.finish_reason == "length" for r in requests) and watched.reports == 1
    watched.seconds = {watched.engine.scheduler.number + 3: 1300}
    assert all(r.finish_reason == "length" for r in watched.run()), "three times as long as it once took is no hang"


def test_a_hang_in_the_first_step_is_found_late():
    watched = Watched()
    watched.seconds = {1: 3000}
    watched.engine.submit([1, 2], 2)
    with pytest.raises(EngineError, match="found 1200 seconds, expected at most 1200 seconds"):
        watched.loop.drain()


def test_an_idle_engine_and_a_paused_reader_are_no_hang():
    watched = Watched()
    watched.wait(10_000)
    watched.engine.submit(PROMPTS[0], 6, streams=True)
    while not watched.loop.idle:
        watched.loop.step()
        watched.wait(500)
    assert not watched.reports and not watched.given_up


def test_time_in_which_the_whole_process_stood_still_does_not_count():
    """A debugger, SIGSTOP, a laptop's lid: the clock goes on, and neither the step nor the watchdog runs."""
    watched = Watched()
    number = watched.warm() + 3
    forward = watched.engine.executor.forward

    def stopped(step):
        if step.number == number:
            watched.wait(3600, look=3600)
        forward(step)

    watched.engine.executor.forward = stopped
    assert all(r.finish_reason == "length" for r in watched.run())
    assert not watched.reports and not watched.given_up


def test_limits_can_be_turned_off():
    watched = Watched(StepLimits.checked(None, 0))
    watched.seconds = {watched.warm() + 2: 100_000}
    assert all(r.finish_reason == "length" for r in watched.run()) and not watched.reports
    watched.dog.start()
    assert watched.dog._thread is None
    assert StepLimits.checked(5, 7.5) == (5.0, 7.5)


@pytest.mark.parametrize("wrong", [-1, float("nan"), float("inf"), "30", True, [1]])
def test_a_limit_is_a_number_of_seconds(wrong):
    for given in ((wrong, 1), (1, wrong)):
        with pytest.raises(UsageError, match=r"step_(warning|timeout): no time.*E-USE-SECONDS"):
            StepLimits.checked(*given)


def test_the_thread_looks_and_ends_with_its_watchdog():
    found = threading.Event()
    pulse = Pulse()
    dog = Watchdog(pulse, StepLimits(0.001, None), report=found.set, give_up=lambda error: None)
    pulse.begin(None)
    dog.start()
    assert found.wait(10)
    thread = dog._thread
    dog.stop()
    dog.stop()
    assert not thread.is_alive()
    other = Watchdog(pulse, StepLimits(0.1, None), report=found.set, give_up=lambda error: None)
    other.start()
    thread = other._thread
    del other
    thread.join(10)
    assert not thread.is_alive(), "it does not keep its engine"
