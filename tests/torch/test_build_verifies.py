"""Nothing is made of a checkpoint that differs from its digests, and what was just verified is not read twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import make_hf

from bestiary import LLM, DataError
from bestiary.converters.convert import convert
from bestiary.core.cli.main import invoke
from bestiary.core.engine.options import BuildOptions
from bestiary.core.home import Home
from bestiary.core.plugins import PluginHost
from bestiary.core.prepare import prepare
from bestiary.core.progress import Silent

WEIGHTS = "weights-00001.safetensors"


class Steps(Silent):
    def __init__(self) -> None:
        self.names: list[str] = []

    def start(self, step: str, total: int | None, unit: str) -> None:
        self.names.append(step)


@pytest.fixture(scope="module")
def host() -> PluginHost:
    return PluginHost.load()


def flip(file: Path) -> None:
    """Turn one bit of the last weight around, keeping size and times."""
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


@pytest.fixture
def damaged(tmp_path: Path, host: PluginHost) -> Path:
    make_hf(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "ckpt", host=host)
    flip(tmp_path / "ckpt" / WEIGHTS)
    return tmp_path / "ckpt"


def test_bestiary_build_refuses_it(damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["build", str(damaged), str(tmp_path / "engine")]) == 65
    assert f"bestiary: {WEIGHTS}: differs from the manifest; found sha256 " in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpt", "hf"]


def test_bestiary_export_refuses_it(damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["export", str(damaged), str(tmp_path / "back")]) == 65
    assert f"bestiary: {WEIGHTS}: differs from the manifest; found sha256 " in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpt", "hf"]


def test_llm_refuses_it(damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BESTIARY_HOME", str(tmp_path / "home"))
    with pytest.raises(DataError, match=f"^{WEIGHTS}: differs from the manifest"):
        LLM(str(damaged), device="cpu", tokenizer=None)
    assert not list((tmp_path / "home").rglob("engine.json"))


def test_a_conversion_is_verified_once_and_again_when_a_later_build_takes_it_from_the_cache(
    tmp_path: Path, host: PluginHost
) -> None:
    make_hf(tmp_path / "hf")
    home, steps = Home(tmp_path / "home"), Steps()
    options = BuildOptions(device="cpu", max_batch_size=2, max_num_tokens=32)
    prepare(tmp_path / "hf", host=host, options=options, progress=steps, home=home)
    assert steps.names[-4:] == ["convert", "verify", "build: trace", "build: kernels"]
    assert steps.names.count("verify") == 1
    (checkpoint,) = (entry.path for entry in home.entries() if entry.kind == "checkpoints")
    flip(checkpoint / WEIGHTS)
    with pytest.raises(DataError, match=f"^{WEIGHTS}: differs from the manifest"):
        prepare(tmp_path / "hf", host=host, options=BuildOptions(device="cpu", max_batch_size=3), home=home)
