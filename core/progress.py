"""How long work reports itself. The command line draws bars; a library call is silent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


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
