"""How long work reports itself. The command line draws bars; a library call is silent."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, Protocol, cast

log = logging.getLogger(__name__)


class Progress(Protocol):
    """Receives the steps of one job, one after the other (``convert``, ``verify``, ``build``, …)."""

    def start(self, step: str, total: int | None, unit: str) -> None:
        """A step begins; ``total`` units of work (bytes, tensors, calls), or None where that isn't known."""

    def advance(self, amount: int) -> None:
        """Some of the current step is done."""

    def finish(self, note: str) -> None:
        """The current step is done; ``note`` says what came of it in a few words."""


class Silent:
    """Reports nothing."""

    def start(self, step: str, total: int | None, unit: str) -> None:
        pass

    def advance(self, amount: int) -> None:
        pass

    def finish(self, note: str) -> None:
        pass


class Note:
    """What a step wants said of it when it ends."""

    text = ""


@contextmanager
def step(progress: Progress, name: str, total: int | None = None, unit: str = "") -> Iterator[Note]:
    """Report a block as one step; set ``note.text`` inside it. A failed step is left unfinished."""
    progress.start(name, total, unit)
    note = Note()
    yield note
    progress.finish(note.text)


def bearing(stream: IO[str] | None) -> IO[str]:
    """``stream`` for what nobody must miss: where it can't be written any more (its reader has left, the disk is full, it was
    closed) the log says so once, and the rest is dropped. None, which is what Python has for a closed one, is dropped too."""
    return cast("IO[str]", _Bearing(stream))


class _Bearing:
    def __init__(self, stream: IO[str] | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if self._stream is not None:
            try:
                self._stream.write(text)
            except (OSError, ValueError) as error:
                self._give_up(error)
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._give_up(error)

    def isatty(self) -> bool:
        try:
            return self._stream is not None and self._stream.isatty()
        except ValueError:  # closed
            return False

    def _give_up(self, error: Exception) -> None:
        self._stream = None
        with suppress(OSError, ValueError):  # the log may go the same way
            log.warning("progress can't be shown any more: %s", error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
