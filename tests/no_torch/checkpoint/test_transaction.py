"""A target is absent (or the old one) or complete, whatever happens while it is written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from bestiary import OutputError, ReadWriteError
from bestiary.core.checkpoint.transaction import new_directory

WRITER = """
import sys, time
from pathlib import Path
from bestiary.core.checkpoint.transaction import new_directory
with new_directory(Path(sys.argv[1]), overwrite=True) as directory:
    (directory / "bestiary.json").write_text("new")
    print("ready", flush=True)
    time.sleep(600)
"""


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def make(target: Path, text: str, *, overwrite: bool = False) -> None:
    with new_directory(target, overwrite=overwrite) as directory:
        (directory / "bestiary.json").write_text(text)


def test_success_leaves_the_target_alone_in_its_parent(tmp_path: Path) -> None:
    target = tmp_path / "new" / "out"
    make(target, "x")
    assert names(tmp_path / "new") == {"out"} and names(target) == {"bestiary.json"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_failure_leaves_nothing(error: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(error), new_directory(tmp_path / "out") as directory:
        (directory / "part").write_text("x")
        raise error
    assert names(tmp_path) == set()


def test_a_full_disk_is_a_write_error_and_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(ReadWriteError, match="shard: writing failed: No space") as error,
        new_directory(tmp_path / "out"),
    ):
        raise OSError(28, "No space left on device", "/somewhere/shard")
    assert error.value.exit_status == 74 and names(tmp_path) == set()


@pytest.mark.parametrize("kind", ["directory", "file", "link"])
def test_an_existing_target_is_refused(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "out"
    if kind == "directory":
        make(target, "old")
    elif kind == "file":
        target.write_text("x")
    else:
        target.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="out: exists") as error:
        make(target, "new")
    assert error.value.exit_status == 73 and names(tmp_path) == {"out"}


def test_an_empty_directory_is_as_good_as_none(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    make(tmp_path / "out", "x")
    assert (tmp_path / "out" / "bestiary.json").read_text() == "x"


def test_overwrite_replaces_only_what_holds_a_model(tmp_path: Path) -> None:
    target = tmp_path / "out"
    make(target, "old")
    make(target, "new", overwrite=True)
    assert (target / "bestiary.json").read_text() == "new" and names(tmp_path) == {"out"}
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("x")
    with pytest.raises(OutputError, match="holds no model"):
        make(home, "new", overwrite=True)
    assert names(home) == {"thesis.tex"}


def test_overwrite_keeps_the_old_one_until_the_end(tmp_path: Path) -> None:
    target = tmp_path / "out"
    make(target, "old")
    with pytest.raises(ValueError), new_directory(target, overwrite=True) as directory:
        assert (target / "bestiary.json").read_text() == "old"
        (directory / "bestiary.json").write_text("half")
        raise ValueError
    assert (target / "bestiary.json").read_text() == "old" and names(tmp_path) == {"out"}


def test_overwrite_works_where_directories_cannot_be_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bestiary.core.checkpoint.transaction._exchange", lambda one, other: False)
    make(tmp_path / "out", "old")
    make(tmp_path / "out", "new", overwrite=True)
    assert (tmp_path / "out" / "bestiary.json").read_text() == "new" and names(tmp_path) == {"out"}


def test_two_writers_at_once_one_wins(tmp_path: Path) -> None:
    target, both_inside, results = tmp_path / "out", threading.Barrier(2), []

    def write(text: str) -> None:
        try:
            with new_directory(target) as directory:
                (directory / "bestiary.json").write_text(text)
                both_inside.wait()
            results.append(text)
        except OutputError:
            results.append("refused")

    threads = [threading.Thread(target=write, args=(text,)) for text in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = set(results) - {"refused"}
    assert len(results) == 2 and (target / "bestiary.json").read_text() == winner and names(tmp_path) == {"out"}


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_writer_leaves_the_old_target_and_the_next_one_cleans_up(signal_number: int, tmp_path: Path) -> None:
    target = tmp_path / "out"
    make(target, "old")
    writer = subprocess.Popen(
        # A background job of a shell ignores SIGINT, and so would its children.
        [
            sys.executable,
            "-c",
            f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n{WRITER}",
            str(target),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
    assert len(names(tmp_path)) == 2
    make(tmp_path / "other", "x")
    assert len(names(tmp_path)) == 3, "the temporary directory of a live process must stay"
    writer.send_signal(signal_number)
    writer.wait(timeout=60)
    writer.stdout.close()
    assert (target / "bestiary.json").read_text() == "old"
    make(target, "new", overwrite=True)
    assert (target / "bestiary.json").read_text() == "new" and names(tmp_path) == {"out", "other"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_parent_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="can't be created"):
        make(tmp_path / "out", "x")
