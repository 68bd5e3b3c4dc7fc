"""The executor whose ranks are processes of their own on this machine. The driver imports no torch for it.

Each rank is ``python -m bestiary.core.runtime.rank_main`` with one end of a socket pair. It gets the messages that the
executor in process gets, in the same order as all other ranks, and sees in the socket's end that its parent is gone.
"""

from __future__ import annotations

import logging
import os
import select
import subprocess
import sys
import tempfile
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

from bestiary.core.errors import ConfigError, EngineError
from bestiary.core.runtime.rank_messages import STACKS, Close, Failed, Numbered, Ready, Setup, codec
from bestiary.core.runtime.rank_process import Rank, died, disordered, end_all, late, raised, spawn

if TYPE_CHECKING:
    from bestiary.core.plugins import PluginHost
    from bestiary.core.runtime.messages import SampledMessage, SampleMessage, StepMessage

log = logging.getLogger("bestiary.ranks")

_GRACE = 0.3  # seconds in which ranks that fail because another did are told from it
_CLOSING = 10.0  # seconds that ranks have to end when asked to
_BETWEEN = 1.0  # seconds between two looks at ranks that start, at most


class RankExecutor:
    """See :class:`~bestiary.core.runtime.executor.Executor`. Ranks that are not closed end with this object.

    Args:
        tensor: ranks that share each layer.
        stages: pipeline stages.
        device: ``cpu``, or ``cuda`` for a GPU each.
        host: the plugins that every rank loads.
        worker, arguments: see :class:`Setup`.
        start_timeout: seconds that the ranks have to load; None for no limit. Time in which this process stood still is not
            counted.

    Attributes:
        facts: of each rank, what its worker says of itself.
        failure: what ended the executor for good.

    Raises:
        ConfigError: a plugin that another process can't import.
        BestiaryError: what a rank raised while it started.
        EngineError: a rank died while it started, or does not start in time.
    """

    overlaps, takes_functions = True, False

    def __init__(
        self,
        *,
        tensor: int,
        stages: int,
        device: str,
        host: PluginHost,
        worker: str,
        arguments: Mapping[str, Any],
        start_timeout: float | None = None,
    ) -> None:
        check_importable(host.plugin_names())
        self.failure: EngineError | None = None
        self._directory = tempfile.TemporaryDirectory(prefix="bestiary-ranks-")
        self._ranks: list[Rank] = []
        self._number = 0  # of the last message about a step that was sent
        self._end = weakref.finalize(self, end_all, self._ranks, self._directory, os.getpid())
        self._codec, self._poll, self._expected = codec(), select.poll(), deque[Answer]()
        loaded = host.plugin_names(), host.preferences(), host.lock()
        try:
            for number in range(tensor * stages):
                where = f"(tensor {number % tensor}, stage {number // tensor})"
                rank = spawn(f"rank {number} of {tensor * stages} {where}", self._directory.name)
                self._ranks.append(rank)
                self._poll.register(rank.channel, select.POLLIN)
            for number in range(len(self._ranks)):
                setup = Setup(number, tensor, stages, device, *loaded, worker, arguments)
                self._write(self._codec.encode(setup), self._ranks[number])
            self._await_start(start_timeout)
        except BaseException:
            self._end()
            raise
        self.facts = tuple(rank.facts or {} for rank in self._ranks)

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids, by rank."""
        return tuple(rank.process.pid for rank in self._ranks)

    def forward(self, step: StepMessage) -> None:
        """Launch a step on every rank.

        Raises:
            EngineError: it can't be sent; or a rank is dead, and with it the engine, as ``failure`` says.
        """
        self._write(self._next_frame(step), *self._ranks)

    def sample(self, wanted: SampleMessage) -> Answer:
        """Launch the choice of tokens on every rank; the results are those of the last stage's first rank.

        Raises:
            EngineError: it can't be sent; or a rank is dead, and with it the engine, as ``failure`` says.
        """
        frame = self._next_frame(wanted)
        answer = Answer(self._look, self._number)
        self._expected.append(answer)  # before it is sent: the answer may come while another rank is still being told
        self._write(frame, *self._ranks)
        return answer

    def report(self) -> None:
        """Have each rank write the stacks of its threads to stderr."""
        for rank in self._ranks:
            rank.process.send_signal(STACKS)

    def abandon(self) -> None:
        """Kill the ranks; whoever waits for one of them sees it."""
        for rank in self._ranks:
            rank.process.kill()

    def close(self) -> None:
        """End the ranks, and kill those that don't. May be called again."""
        if self._end.alive:
            for rank in self._ranks:
                with suppress(OSError):
                    rank.channel.write(self._codec.encode(Close()), blocked=_give_up)
            deadline = time.monotonic() + _CLOSING
            for rank in self._ranks:
                with suppress(subprocess.TimeoutExpired):
                    rank.process.wait(max(0.0, deadline - time.monotonic()))
            self._end()
        self.failure = self.failure or EngineError("E-RUN-CLOSED", "engine", "it has been closed")

    def _await_start(self, timeout: float | None) -> None:
        spent, looked = 0.0, time.monotonic()
        while waiting := [rank.label for rank in self._ranks if rank.facts is None]:
            if timeout is not None and spent >= timeout:
                raise late(waiting, timeout)
            self._look(_BETWEEN if timeout is None else min(_BETWEEN, timeout - spent))
            now = time.monotonic()
            spent, looked = spent + min(now - looked, 2 * _BETWEEN), now

    def _next_frame(self, message: StepMessage | SampleMessage) -> bytes:
        """Number a message for all ranks. One that can't be sent takes no number: to them a gap would be a lost message."""
        frame = self._codec.encode(Numbered(self._number + 1, message))
        self._number += 1
        return frame

    def _write(self, frame: bytes, *ranks: Rank) -> None:
        self._look(0)
        for rank in ranks:
            try:
                rank.channel.write(frame, blocked=self._look)
            except OSError:
                self._fail(rank, None)

    def _look(self, seconds: float | None = 0) -> None:
        """Take what the ranks have said, waiting for it up to so many seconds (None: for ever)."""
        if self.failure is not None:
            raise self.failure
        for rank, message in self._heard(seconds):
            if message is None or isinstance(message, Failed):
                self._fail(rank, message)
            if isinstance(message, Ready):
                rank.facts = message.facts
            else:
                self._take(rank, message)

    def _take(self, rank: Rank, message: Any) -> None:
        """Give the oldest answer that is waited for what a rank has answered; to anything else, the engine is dead."""
        found = message.number if isinstance(message, Numbered) else None
        expected = self._expected[0].number if self._expected else None
        if found is None or found != expected:
            self.failure = disordered(rank, found, expected, self._number)
            self._end()
            raise self.failure
        self._expected.popleft().message = message.message

    def _heard(self, seconds: float | None) -> Iterator[tuple[Rank, Any]]:
        """A message of each rank that has one, None for the end of it."""
        ready = {descriptor for descriptor, _ in self._poll.poll(None if seconds is None else seconds * 1000)}
        for rank in self._ranks:
            if rank.channel.fileno() in ready:
                try:
                    yield rank, rank.channel.receive()
                except EOFError:
                    yield rank, None

    def _fail(self, rank: Rank, words: Failed | None) -> NoReturn:
        """A rank is dead: find out which of them was the first, end all, and raise what killed it."""
        if self.failure is not None:  # they were abandoned
            self._end()
            raise self.failure
        last: list[tuple[Rank, Failed | None]] = [(rank, words)]
        self._poll.unregister(rank.channel)
        deadline = time.monotonic() + _GRACE
        while len(last) < len(self._ranks) and (left := deadline - time.monotonic()) > 0:
            for other, message in self._heard(left):
                if message is None or isinstance(message, Failed):
                    last.append((other, message))
                    self._poll.unregister(other.channel)
        # Those that lose a peer say so; the one that could say nothing is what they lost.
        rank, words = min(last, key=lambda one: one[1].at if one[1] else 0.0)
        started = all(one.facts is not None for one in self._ranks)
        error = died(rank) if words is None else raised(rank, words, started)
        self.failure = error if isinstance(error, EngineError) else None
        self._end()
        raise error


class Answer:
    """Results of a sampling on their way; see :class:`~bestiary.core.runtime.executor.Pending`.

    Args:
        look: waits for what the ranks say.
        number: of the message that they answer.
    """

    def __init__(self, look: Callable[[float | None], None], number: int) -> None:
        self._look, self.number = look, number
        self.message: SampledMessage | None = None

    def read(self) -> SampledMessage:
        """Wait for them.

        Raises:
            EngineError: a rank has died, or an answer was lost or came twice.
        """
        while self.message is None:
            self._look(None)
        return self.message


def check_importable(plugins: Sequence[str]) -> None:
    """Refuse plugins that another process can't load by name.

    Args:
        plugins: ``PluginHost.plugin_names``.

    Raises:
        ConfigError: naming the plugin.
    """
    for reference in plugins:
        form, _, name = reference.rpartition(":")
        found = "an object" if form == "object" else "a module that can't be imported" if form == "module" else None
        if form == "module" and name != "__main__":
            top = name.partition(".")[0]  # found as an import finds it, whatever is in sys.modules
            found = None if any(finder.find_spec(top, None) for finder in sys.meta_path) else found
        if found is not None:
            raise ConfigError(
                "E-RUN-PLUGIN",
                f"plugin {name}",
                "the processes of a divided engine can't load it",
                found=found,
                expected="an installed plugin, or a module on sys.path",
                hint="put it into a file of its own and pass its name",
            )


def _give_up() -> None:
    raise TimeoutError
