"""What changes the loop between its steps: from any thread, and from finalizers, wherever those interrupt a thread."""

from __future__ import annotations

import sys
import threading
from types import FrameType
from typing import Any

from canary import Engine

from bestiary.core.driver import Driver
from bestiary.core.runtime.pulse import Pulse
from bestiary.core.watchdog import StepLimits, Watchdog


def test_whoever_waits_is_told_of_a_change_between_two_steps():
    driver, told = Driver(Engine().loop), []
    driver.post(lambda loop: driver.tell(lambda: told.append("it came")))
    assert told == ["it came"]


def test_a_finalizer_may_interrupt_post_at_any_line():
    """Garbage may be collected between any two lines, so a finalizer's post may run inside another one's."""
    driver = Driver(Engine().loop)
    interrupted, changes = [], []

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line":  # nothing is traced in here
            interrupted.append((frame.f_code.co_name, frame.f_lineno))
            driver.post(lambda loop: changes.append("finalizer"))
        return trace

    def work() -> None:
        sys.settrace(trace)
        driver.post(lambda loop: changes.append("caller"))
        sys.settrace(None)

    driver.start()
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), f"it waits for itself in {interrupted[-1]}"
    driver.post(lambda loop: None)
    assert interrupted and changes.count("caller") == 1 and changes.count("finalizer") == len(interrupted)
    driver.close()


def test_a_finalizer_may_interrupt_the_end_of_a_watchdog_at_any_line():
    watchdog = Watchdog(Pulse(), StepLimits(), report=lambda: None, give_up=lambda error: None)
    lines = []

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line":
            lines.append(frame.f_lineno)
            watchdog.stop()
        return trace

    def work() -> None:
        sys.settrace(trace)
        watchdog.stop()
        sys.settrace(None)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive() and lines
