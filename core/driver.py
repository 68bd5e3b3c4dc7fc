"""Who steps the loop: whoever waits for an answer, and a thread of its own where nobody may wait."""

from __future__ import annotations

import atexit
import logging
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from types import FrameType

from bestiary.core.errors import EngineError
from bestiary.core.jobs import Job
from bestiary.core.runtime.containment import contained
from bestiary.core.runtime.loop import EngineLoop
from bestiary.core.watchdog import StepLimits, Watchdog

log = logging.getLogger("bestiary.runtime.driver")

_TURN = 0.05  # seconds after which one who waits for his turn looks whether others' steps have done his work
_LEAVING = 10.0  # seconds that the thread has to end when the interpreter does


class Driver:
    """Steps one loop, one step at a time, from any thread.

    What changes the loop between steps is put into an inbox, which never waits for a step. Ctrl-C waits for the step under
    way: in its middle it would leave blocks that were promised and never written.

    Args:
        limits: of a step. Who waits for one that is longer than the second is told that the engine is dead; the thread that is
            in it can't be ended, and is told when it comes back.
    """

    def __init__(self, loop: EngineLoop, limits: StepLimits | None = None) -> None:
        self.loop = loop
        self._watchdog = Watchdog(
            loop.pulse, limits or StepLimits(), report=loop.executor.report, give_up=self._give_up
        )
        self._given_up = False  # whoever has the turn may never give it back
        self._turn = threading.Lock()
        self._stepping: int | None = None  # the thread whose turn it is
        self._inbox: deque[Callable[[EngineLoop], object]] = deque()
        self._listeners: dict[Callable[[], None], None] = {}  # to be called after the step
        self._thread: threading.Thread | None = None
        self._work: SimpleQueue[None] = SimpleQueue()  # wakes the thread; put() may interrupt itself, as finalizers do
        self._closed = False

    def submit(self, job: Job) -> None:
        """Start a job; where that fails, the job ends with what went wrong."""
        self.post(lambda loop: _start(job, loop))

    def post(self, change: Callable[[EngineLoop], object]) -> None:
        """Change the loop before its next step, or at once if it is between two. Never waits, and may be called anywhere:
        from inside a step, and by finalizers, which interrupt whatever a thread is doing, this too."""
        self._inbox.append(change)
        if self._thread is not None:
            self._work.put(None)
        self._empty_inbox()

    def run(self, done: Callable[[], bool], after: Callable[[], None] = lambda: None, jobs: Sequence[Job] = ()) -> None:
        """Step until ``done``, calling ``after`` between steps.

        Args:
            jobs: that were submitted and must have ended when nothing is left to do.

        Raises:
            EngineError: the engine is dead, this is called from inside one of its steps, or one of the ``jobs`` got lost.
        """
        while not done():
            self.step(unless=done, jobs=jobs)
            after()

    def step(self, unless: Callable[[], bool] = lambda: False, jobs: Sequence[Job] = ()) -> None:
        """One step, unless another thread is at it.

        Raises:
            EngineError: as for :meth:`run`.
        """
        self._refuse_inside()
        self._watchdog.start()
        if not self._turn.acquire(timeout=_TURN):
            return
        try:
            with self._my_turn():
                if not unless():
                    self._take_in()
                    if not self.loop.idle:
                        with _interrupts_wait():
                            self.loop.step()
                    elif not all(job.finished for job in jobs):
                        raise _lost()
        finally:
            self._turn.release()
            self._empty_inbox()
            self._notify()

    def start(self) -> None:
        """Step in a thread of its own from now on, whenever there is work."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="bestiary-engine", daemon=True)
            self._thread.start()
            atexit.register(self._leave)

    def tell(self, listener: Callable[[], None]) -> None:
        """Call a listener once after the step under way; it must not wait."""
        self._listeners[listener] = None

    def close(self) -> None:
        """End all requests and the engine. May be called again.

        Raises:
            EngineError: this is called from inside one of its steps.
        """
        self._refuse_inside()
        self._closed = True
        self._work.put(None)
        if self._next_turn():
            try:
                with self._my_turn():
                    self._take_in()
                    self.loop.abort_all()
                    self.loop.executor.close()
            finally:
                self._turn.release()
        else:
            log.warning("a thread is still in a step that hangs: the engine's memory stays taken until it comes back")
            self.loop.executor.close()
        self._watchdog.stop()
        self._notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_TURN if self._given_up else None)
            atexit.unregister(self._leave)

    def _next_turn(self) -> bool:
        """Wait for the turn; False where whoever has it does not come back."""
        while not self._turn.acquire(timeout=_TURN):
            if self._given_up:
                return False
        return True

    def _give_up(self, error: EngineError) -> None:
        """The step under way does not end. The watchdog's thread calls it."""
        self.loop.give_up(error)
        self._given_up = True
        self._empty_inbox()
        self._notify()

    @contextmanager
    def _my_turn(self) -> Iterator[None]:
        self._stepping = threading.get_ident()
        try:
            yield
        finally:
            self._stepping = None

    def _refuse_inside(self) -> None:
        if self._stepping == threading.get_ident():
            raise EngineError(
                "E-RUN-INSIDE",
                "engine",
                "can't be driven from inside one of its own steps",
                found="a logits processor, grammar or callback that calls it",
                hint="call it from outside; generate_async only starts a request",
            )

    def _empty_inbox(self) -> None:
        """Take in what was put there, unless someone is at it who will look again when he is done."""
        while self._inbox and self._stepping != threading.get_ident():
            if self._turn.acquire(blocking=False):
                try:
                    with self._my_turn():
                        self._take_in()
                finally:
                    self._turn.release()
            elif self._given_up:
                self._take_in()  # a dead loop only refuses
            else:
                return
            self._notify()

    def _take_in(self) -> None:
        while True:
            try:
                change = self._inbox.popleft()
            except IndexError:  # empty, or emptied by another thread where the engine was given up
                return
            try:
                change(self.loop)
            except Exception as error:
                log.error("a change of the engine failed: %s", error, exc_info=error)

    def _notify(self) -> None:
        while self._listeners:
            try:
                listener, _ = self._listeners.popitem()
            except KeyError:  # another thread took it
                return
            listener()

    def _serve(self) -> None:
        while not self._closed:
            try:
                self.run(lambda: self._closed or (self.loop.idle and not self._inbox))
            except BaseException as error:  # every request has been told; later ones are refused with the cause
                log.error("the engine's thread: %s", error)
            self._work.get()

    def _leave(self) -> None:
        """The interpreter ends: the thread must not be in the middle of a step then."""
        self._closed = True
        self._work.put(None)
        if self._thread is not None:
            self._thread.join(0 if self._given_up else _LEAVING)


def _start(job: Job, loop: EngineLoop) -> None:
    try:
        job.start(loop)
    except BaseException as error:
        job.fail(contained(error), loop)


def _lost() -> EngineError:
    return EngineError("E-RUN-LOST", "engine", "has nothing to do, and yet a request of this call has not ended")


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Ctrl-C takes effect at the end of the block; pressed again, at once."""
    handler = signal.getsignal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else None
    if not callable(handler):
        yield
        return
    came: list[FrameType | None] = []

    def note(number: int, frame: FrameType | None) -> None:
        if came:
            handler(number, frame)
        came.append(frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if came:
        handler(signal.SIGINT, came[0])
