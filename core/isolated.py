"""Work in a process of its own, so that whatever becomes of that process is an answer: a crash, an exit, a hang.

The child is ``python -m bestiary.core.isolated_main``. Jobs go down its standard input, answers come up a pipe that nothing
else writes to: what a library prints goes to a file, whose end is shown when the child dies.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

_TAIL = 8000  # characters of what a dead child printed
_LINES = 10  # of them, in a message
_CRASHED = "Current thread"  # of what faulthandler prints, the part about the thread that crashed
#: How frames begin of what brings a child to its work.
_OURS = (
    'File "<frozen',
    *(f'File "{Path(__file__).parent / name}' for name in ("conformance", "program", "plugins", "isolated_main.py")),
)
_DUMPING = 1.0  # seconds in which a child that hangs may say where
_STARTING = 300.0  # seconds in which a child imports what it needs


class Died(Exception):
    """A child did not answer.

    Args:
        how: a clause: ``"was killed by SIGSEGV"``.
        at: the last place that the child named.
        output: the end of what it printed.
    """

    def __init__(self, how: str, at: str, output: str) -> None:
        super().__init__(f"{at}: {how}" if at else how)
        self.how, self.at, self.output = how, at, output

    @property
    def last_words(self) -> list[str]:
        """Of the output, the lines that say most: the innermost frames of a crash, without the child's own, else the end."""
        lines = self.output.splitlines()
        crashed = [index for index, line in enumerate(lines) if line.startswith(_CRASHED)]
        if not crashed:
            return lines[-_LINES:]
        stack = lines[crashed[-1] :][:_LINES]
        stack[0] = re.sub(r" 0x[0-9a-f]+", "", stack[0])  # an address, another in each child
        ours = (index for index, line in enumerate(stack) if index > 1 and line.strip().startswith(_OURS))
        return stack[: next(ours, _LINES)]


class Isolated:
    """A child that does one job after the other; the next job after a death gets a new child.

    Args:
        serve: ``module:function``, called in the child as ``function(job, say)``: a job is what :meth:`run` was given,
            ``say(text)`` names the place where the work is, and the answer is anything that JSON can hold.
        timeout: seconds without a sign of life after which a child is ended.
    """

    def __init__(self, serve: str, *, timeout: float) -> None:
        self._serve, self._timeout = serve, timeout
        self._child: _Child | None = None

    def run(self, job: Any) -> Any:
        """The answer to a job.

        Raises:
            Died: there is none: the child crashed, ended, hung, or the function raised.
        """
        if self._child is None:
            self._child = _Child(self._serve)
        try:
            return self._child.ask(job, self._timeout)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def __enter__(self) -> Isolated:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


class _Child:
    def __init__(self, serve: str) -> None:
        self._events, writing = os.pipe()
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115
        environment = {
            "KINETO_LOG_LEVEL": "6",  # torch's profiler prints a line each time; what a dying child prints is shown
            **os.environ,
            "PYTHONPATH": os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path),
        }
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-X", "faulthandler", "-m", "bestiary.core.isolated_main", str(writing), serve],
                pass_fds=[writing],
                stdin=subprocess.PIPE,
                stdout=self._printed,
                stderr=self._printed,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the parent
            )
        finally:
            os.close(writing)
        self._pending, self._at, self._started = b"", "", False
        self._end = weakref.finalize(self, _end, self._process, self._events, self._printed, os.getpid())

    def ask(self, job: Any, timeout: float) -> Any:
        assert self._process.stdin is not None
        self._at = ""
        with suppress(BrokenPipeError):  # it died meanwhile: reading tells how
            data = pickle.dumps(job)
            self._process.stdin.write(len(data).to_bytes(8, "little") + data)
            self._process.stdin.flush()
        while True:
            event = self._next(timeout if self._started else max(timeout, _STARTING))
            self._started = True
            if "answer" in event:
                return event["answer"]
            if "raised" in event:
                raise Died(str(event["raised"]), self._at, str(event.get("trace", "")))
            self._at = str(event.get("at", self._at))

    def close(self) -> None:
        self._end()

    def _next(self, timeout: float) -> Mapping[str, Any]:
        deadline = time.monotonic() + timeout
        while b"\n" not in self._pending:
            ready, _, _ = select.select([self._events], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise self._hung(timeout)
            read = os.read(self._events, 65536)
            if not read:
                raise self._ended()
            self._pending += read
        line, _, self._pending = self._pending.partition(b"\n")
        event = json.loads(line)
        assert isinstance(event, dict)
        return event

    def _hung(self, timeout: float) -> Died:
        self._process.send_signal(signal.SIGABRT)  # at which faulthandler prints where Python is
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_DUMPING)
        return Died(f"gave no sign of life for {timeout:g} s", self._at, self._tail())

    def _ended(self) -> Died:
        try:
            status = self._process.wait(_DUMPING)
        except subprocess.TimeoutExpired:
            how = "closed its connection"
        else:
            name = signal.Signals(-status).name if status < 0 else ""
            how = f"was killed by {name}" if name else f"exited with status {status} before it was done"
        return Died(how, self._at, self._tail())

    def _tail(self) -> str:
        size = self._printed.seek(0, os.SEEK_END)
        self._printed.seek(max(0, size - _TAIL))
        return self._printed.read().decode(errors="replace").strip()


def _end(process: subprocess.Popen[bytes], events: int, printed: IO[bytes], owner: int) -> None:
    if os.getpid() == owner:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with whatever it started
        process.wait()
    if process.stdin is not None:
        with suppress(OSError):
            process.stdin.close()
    os.close(events)
    printed.close()
