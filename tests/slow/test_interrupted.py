"""A conversion that is stopped from outside: the target is absent or complete, and the next run finds nothing in its way."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import make_hf

from bestiary.core.checkpoint.verify import verify
from bestiary.core.plugins import PluginHost

pytestmark = pytest.mark.slow
# Big enough for a conversion of half a second.
SIZE = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 16, "vocab_size": 8192}
COMMAND = [sys.executable, "-c", "from bestiary.core.cli.main import main; main()", "convert"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("source") / "hf"
    make_hf(directory, **SIZE)
    return directory


def start(source: Path, target: Path) -> subprocess.Popen[str]:
    # Python leaves SIGINT ignored in a background job of a shell; a terminal does not.
    restore = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    )
    return subprocess.Popen(
        [sys.executable, "-c", restore, *COMMAND, str(source), str(target)], stderr=subprocess.PIPE, text=True
    )


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def written(folder: Path) -> bool:
    """Whether a conversion into ``folder`` has begun to write."""
    return any(name.endswith(".tmp") for name in names(folder))


def stop(
    process: subprocess.Popen[str], number: int, delay: float, *, writing_in: Path | None = None
) -> tuple[int, str]:
    """Send a signal ``delay`` seconds after the start, or after the first byte; the shell's status, and stderr."""
    while writing_in is not None and process.poll() is None and not written(writing_in):
        time.sleep(0.001)
    time.sleep(delay)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    return process.returncode if process.returncode >= 0 else 128 - process.returncode, said


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["int", "term"])
def test_a_stopped_conversion_leaves_all_or_nothing(number: int, status: int, source: Path, tmp_path: Path) -> None:
    host, chance = PluginHost.load(), random.Random(number)
    absent = 0
    for attempt in range(10):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        process = start(source, folder / "ckpt")
        if attempt < 7:
            code, said = stop(process, number, chance.uniform(0, 0.4), writing_in=folder)
            assert "Traceback" not in said, said
        else:
            code, said = stop(process, number, chance.uniform(0, 3))
        found = names(folder)
        if found:
            assert found == ["ckpt"] and code in (0, status), said
            verify(folder / "ckpt", host=host)
        else:
            assert code == status, said
            absent += 1
    assert absent >= 4, "the signals came after the conversion: make the model larger"


def test_what_a_killed_conversion_leaves_the_next_one_removes(source: Path, tmp_path: Path) -> None:
    code, _ = stop(start(source, tmp_path / "ckpt"), signal.SIGKILL, 0.05, writing_in=tmp_path)
    assert code == 137 and written(tmp_path) and not (tmp_path / "ckpt").exists()
    process = start(source, tmp_path / "ckpt")
    assert process.communicate(timeout=120) and process.returncode == 0
    assert names(tmp_path) == ["ckpt"]
    verify(tmp_path / "ckpt", host=PluginHost.load())
