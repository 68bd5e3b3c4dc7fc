"""What tells of the work must not end it: a stderr that is full, closed or without a reader takes the telling away only."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bestiary.core.cli.report import progress
from bestiary.core.progress import bearing, step


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def full(kind: type[io.TextIOWrapper]) -> io.TextIOWrapper:
    return kind(Path("/dev/full").open("wb", buffering=0), write_through=True)


def without_reader(kind: type[io.TextIOWrapper]) -> io.TextIOWrapper:
    reads, writes = os.pipe()
    os.close(reads)
    return kind(os.fdopen(writes, "wb", buffering=0), write_through=True)


def closed(kind: type[io.TextIOWrapper]) -> io.TextIOWrapper:
    stream = kind(io.BytesIO())
    stream.close()
    return stream


def none(kind: type[io.TextIOWrapper]) -> None:
    return None


@pytest.fixture(params=[full, without_reader, closed, none])
def broken(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.mark.parametrize("kind", [io.TextIOWrapper, Terminal])
def test_steps_go_on_where_they_cannot_be_shown(broken: Any, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", broken(kind))
    done = 0
    with progress() as shown:
        for name in ("convert", "build"):
            with step(shown, name, 3, "tensors") as note:
                for _ in range(3):
                    shown.advance(1)
                    done += 1
                note.text = "all of them"
    assert done == 6


def test_the_log_says_once_that_nothing_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    stream = bearing(full(io.TextIOWrapper))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            print("working", file=stream, flush=True)
    assert [record.getMessage() for record in caplog.records] == [
        "progress can't be shown any more: [Errno 28] No space left on device"
    ]


@pytest.fixture(params=["full", "closed", "no reader"])
def descriptor(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A ``Popen`` stderr, and what a shell does before the command."""
    if request.param == "full":
        with Path("/dev/full").open("wb") as file:
            yield file, ""
    elif request.param == "closed":
        yield subprocess.DEVNULL, "exec 2>&-; "
    else:
        reads, writes = os.pipe()
        os.close(reads)
        yield writes, ""
        os.close(writes)


def test_a_failure_has_its_exit_status_and_its_json(descriptor: Any) -> None:
    """Not the interpreter's 120, nor the 0 of a command whose reader had enough."""
    stderr, before = descriptor
    code = "import sys; from bestiary.core.cli.main import main; main(sys.argv[1:])"
    command = f'{before}exec "$0" -c "{code}" generate nowhere hello --json'
    done = subprocess.run(["sh", "-c", command, sys.executable], stdout=subprocess.PIPE, stderr=stderr, text=True)
    assert done.returncode == 66
    assert '"exit_status": 66' in done.stdout
    assert done.stdout.startswith("{")
