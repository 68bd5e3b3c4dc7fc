"""Who steps the loop: whoever waits for an answer, and a thread of its own where nobody may wait."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from bestiary.core.errors import EngineError
from bestiary.core.runtime.loop import EngineLoop

_TURN = 0.05  # seconds after which one who waits for his turn looks whether others' steps have done his work


class Driver:
    """Steps one loop, one step at a time, from any thread.

    What changes the loop between steps is put into an inbox, which never waits for a step.
    """

    def __init__(self, loop: EngineLoop) -> None:
        self.loop = loop
        self._turn = threading.RLock()
        self._inbox: deque[Callable[[EngineLoop], object]] = deque()
        self._listeners: dict[Callable[[], None], None] = {}  # to be called after the step
        self._thread: threading.Thread | None = None
        self._work = threading.Event()
        self._closed = False

    def post(self, change: Callable[[EngineLoop], object]) -> None:
        """Change the loop before its next step, or at once if it is between two."""
        self._inbox.append(change)
        if self._turn.acquire(blocking=False):
            try:
                self._take_in()
            finally:
                self._turn.release()
        self._work.set()

    def run(self, done: Callable[[], bool], after: Callable[[], None] = lambda: None) -> None:
        """Step until ``done``, calling ``after`` between steps.

        Raises:
            EngineError: the engine is dead.
        """
        while not done():
            if not self._turn.acquire(timeout=_TURN):
                continue
            try:
                if not done():
                    self._step()
            finally:
                self._turn.release()
            after()

    def step(self) -> None:
        """One step, unless another thread is at it.

        Raises:
            EngineError: the engine is dead.
        """
        if self._turn.acquire(timeout=_TURN):
            try:
                self._step()
            finally:
                self._turn.release()

    def start(self) -> None:
        """Step in a thread of its own from now on, whenever there is work."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="bestiary-engine", daemon=True)
            self._thread.start()

    def tell(self, listener: Callable[[], None]) -> None:
        """Call a listener once after the step under way; it must not wait."""
        self._listeners[listener] = None

    def close(self) -> None:
        """End all requests and the engine. May be called again."""
        self._closed = True
        self._work.set()
        with self._turn:
            self._take_in()
            self.loop.abort_all()
            self.loop.executor.close()
            self._notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _step(self) -> None:
        try:
            self._take_in()
            if not self.loop.idle:
                self.loop.step()
        finally:
            self._notify()

    def _take_in(self) -> None:
        while self._inbox:
            self._inbox.popleft()(self.loop)

    def _notify(self) -> None:
        listeners, self._listeners = self._listeners, {}
        for listener in listeners:
            listener()

    def _serve(self) -> None:
        while not self._closed:
            self._work.wait()
            self._work.clear()
            with suppress(EngineError):  # every request has been told
                self.run(lambda: self._closed or (self.loop.idle and not self._inbox))
