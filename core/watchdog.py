"""A thread that notices when a step does not end: it says where every thread is, and in the end that the engine is dead."""

from __future__ import annotations

import logging
import math
import sys
import threading
import traceback
import weakref
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import NamedTuple

from bestiary.core.errors import EngineError, UsageError, shown
from bestiary.core.runtime.pulse import Pulse

log = logging.getLogger("bestiary.runtime.watchdog")

_LOOKS = 20  # in the shorter limit
_SECONDS = 1.0  # between two looks, at most


class StepLimits(NamedTuple):
    """Seconds that a step may take until it is reported, and until the engine is given up; None: for ever."""

    warning: float | None = 30.0
    timeout: float | None = 120.0

    @classmethod
    def checked(cls, warning: object, timeout: object) -> StepLimits:
        """As a caller gives them; 0 is None.

        Raises:
            UsageError: no number of seconds.
        """
        return cls(seconds("step_warning", warning), seconds("step_timeout", timeout))


class Watchdog:
    """Watches a loop's pulse. Time in which the whole process stood still is not counted, whatever stopped it.

    Args:
        report: called when a step has taken longer than ``limits.warning``.
        give_up: called with what to tell everyone when it has taken longer than ``limits.timeout``.
    """

    def __init__(
        self,
        pulse: Pulse,
        limits: StepLimits,
        *,
        report: Callable[[], None],
        give_up: Callable[[EngineError], None],
    ) -> None:
        self._pulse, self._limits, self._report, self._give_up = pulse, limits, report, give_up
        shortest = min((limit for limit in limits if limit), default=math.inf)
        self._between = min(_SECONDS, shortest / _LOOKS)
        self._looked = pulse.clock()
        self._began: float | None = None  # of the step that is watched
        self._spent = 0.0  # seconds that it has taken
        self._warned = self._over = False
        self._thread: threading.Thread | None = None
        self._stop: SimpleQueue[None] = SimpleQueue()  # a finalizer may put while this very thread waits or puts
        weakref.finalize(self, self._stop.put, None)

    def start(self) -> None:
        """Look in a thread of its own from now on, if there is anything to look for."""
        if self._thread is None and any(self._limits):
            self._thread = threading.Thread(
                target=_watch,
                args=(weakref.ref(self), self._stop, self._between),
                name="bestiary-watchdog",
                daemon=True,
            )
            self._thread.start()

    def stop(self) -> None:
        """End the thread. May be called again."""
        self._stop.put(None)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def look(self) -> None:
        """Is the step under way late?"""
        now = self._pulse.clock()
        # A stopped process runs neither the step nor this, so a long way between two looks is not the step's.
        passed, self._looked = min(now - self._looked, 2 * self._between), now
        began = self._pulse.began
        if began != self._began:
            if self._warned:
                log.warning("the step that was late has ended, after %.0f s", self._spent)
            self._began, self._spent, self._warned = began, 0.0, False
        if began is None or self._over:
            return
        self._spent += min(passed, now - began)
        warning, timeout = self._limits
        if warning and not self._warned and self._spent >= self._pulse.allowed(warning):
            self._warned = self._pulse.late = True
            log.warning("%s has been under way for %.0f s\n%s", self._pulse.describe(), self._spent, stacks())
            self._report()
        if timeout and self._spent >= (allowed := self._pulse.allowed(timeout)):
            self._over = True
            error = self._hung(allowed)
            log.error("%s\n%s", error, stacks())
            self._give_up(error)

    def _hung(self, allowed: float) -> EngineError:
        return EngineError(
            "E-RUN-STUCK",
            "engine",
            f"{self._pulse.describe()} does not end",
            found=f"{self._spent:.0f} seconds",
            expected=f"at most {allowed:.0f} seconds",
            hint="the log has the stacks of all threads; load the engine again in a new process, and if steps may take "
            "as long, give a larger step_timeout",
        )


def stacks() -> str:
    """Where every thread of this process is."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = []
    for ident, frame in sys._current_frames().items():
        if ident != threading.get_ident():
            parts.append(f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}")
    return "".join(parts).rstrip()


def _watch(watchdog: weakref.ref[Watchdog], stop: SimpleQueue[None], seconds: float) -> None:
    while not _told(stop, seconds):
        found = watchdog()
        if found is None:
            return
        try:
            found.look()
        except Exception as error:
            log.error("the watchdog: %s", error, exc_info=error)
        del found


def _told(stop: SimpleQueue[None], seconds: float) -> bool:
    """Wait to be told to stop."""
    try:
        stop.get(timeout=seconds)
    except Empty:
        return False
    return True


def seconds(name: str, given: object) -> float | None:
    """A limit as a caller gives it; 0 is None.

    Raises:
        UsageError: no number of seconds.
    """
    if given is None:
        return None
    number = isinstance(given, int | float) and not isinstance(given, bool)
    if not number or not 0 <= float(given) < math.inf:  # type: ignore[arg-type]
        raise UsageError("E-USE-SECONDS", name, "no time", found=shown(given), expected="seconds, or None for no limit")
    return float(given) or None  # type: ignore[arg-type]
