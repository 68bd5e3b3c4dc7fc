"""Progress and tables: drawn in a terminal, plain lines elsewhere. All of it on stderr, which leaves stdout to answers."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

from bestiary.core.home import gib
from bestiary.core.progress import Progress, Silent, bearing


class Lines:
    """One line a step, when it is done: its name, its time, what came of it."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream, self.name, self.began = stream, "", 0.0

    def start(self, step: str, total: int | None, unit: str) -> None:
        self.name, self.began = step, time.monotonic()

    def advance(self, amount: int) -> None:
        pass

    def finish(self, note: str) -> None:
        step_line(self.name, time.monotonic() - self.began, note, self.stream)


class Bars:
    """A bar for the running step; a finished one becomes a line."""

    def __init__(self, console: Any) -> None:
        self.lines, self.console = Lines(console.file), console
        self.bar: Any = None
        self.task: Any = None
        self.is_bytes, self.done = False, 0

    def start(self, step: str, total: int | None, unit: str) -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        self.stop()
        self.lines.start(step, total, unit)
        self.is_bytes, self.done, self.unit, self.total = unit in ("B", "bytes"), 0, unit, total
        columns = (
            TextColumn("{task.description:<14}"), BarColumn(), TaskProgressColumn(),
            TextColumn("{task.fields[amount]}"), TimeElapsedColumn(),
        )  # fmt: skip
        self.bar = Progress(*columns, console=self.console, transient=True)
        self.task = self.bar.add_task(step, total=total or None, amount="")
        self.bar.start()

    def advance(self, amount: int) -> None:
        self.done += amount
        if self.bar is not None:
            self.bar.update(self.task, advance=amount, amount=self._amount())

    def finish(self, note: str) -> None:
        self.stop()
        self.lines.finish(note)

    def stop(self) -> None:
        """Take the bar off the screen."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _amount(self) -> str:
        show = gib if self.is_bytes else str
        total = f" / {show(self.total)}" if self.total else ""
        return f"{show(self.done)}{total}" + ("" if self.is_bytes else f" {self.unit}")


@contextmanager
def progress(*, silent: bool = False) -> Iterator[Progress]:
    """Where a command's steps are shown; with ``--json``, nowhere. Where stderr can't be written the work goes on."""
    stream = bearing(sys.stderr)
    if silent:
        yield Silent()
    elif not stream.isatty():
        yield Lines(stream)
    else:
        from rich.console import Console

        bars = Bars(Console(file=stream))
        try:
            yield bars
        finally:
            bars.stop()


def width() -> int:
    """Columns of the terminal, or of a page where there is none."""
    return shutil.get_terminal_size((100, 24)).columns


def table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    stream: IO[str] | None = None,
    total: int | None = None,
) -> None:
    """Rows under headings: a rich table in a terminal, aligned columns elsewhere.

    Args:
        total: most columns of text; the last cells are cut for it.
    """
    out = stream or sys.stdout
    if total is not None:
        rows = _cut(headings, rows, total - out.isatty(), gap=3 if out.isatty() else 2)
    if out.isatty():
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        drawn = Table(*headings, box=box.SIMPLE_HEAD, pad_edge=False)
        for row in rows:
            drawn.add_row(*(Text(cell) for cell in row))
        Console(file=out).print(drawn)
        return
    widths = [max(len(row[column]) for row in [headings, *rows]) for column in range(len(headings))]
    for row in [headings, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(), file=out)


def _cut(headings: Sequence[str], rows: Sequence[Sequence[str]], total: int, gap: int) -> list[tuple[str, ...]]:
    others = sum(max(len(row[column]) for row in [headings, *rows]) + gap for column in range(len(headings) - 1))
    room = max(20, total - others - gap + 2)
    return [(*row[:-1], row[-1] if len(row[-1]) <= room else f"{row[-1][: room - 1].rstrip()}…") for row in rows]


def peak_memory() -> int:
    """Bytes of memory this process held at most."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def step_line(name: str, took: float, note: str, stream: IO[str]) -> None:
    """The line of a finished step; ``took`` is in seconds."""
    print(f"{name:<14} {_seconds(took):>8}  {note}".rstrip(), file=stream, flush=True)


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s" if value < 100 else f"{value / 60:.1f} min"


def seconds(value: float | None) -> str:
    """A duration for people; a dash where nothing was measured.

    >>> seconds(0.05), seconds(2.5), seconds(None)
    ('50 ms', '2.5 s', '-')
    """
    return "-" if value is None else _seconds(value)
