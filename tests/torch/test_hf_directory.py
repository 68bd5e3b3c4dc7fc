"""Any model as a Hugging Face directory: itself where it is one, else an export that leaves nothing behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny import make_engine

from bestiary import BestiaryError, MissingInputError
from bestiary.core.hf_directory import hf_directory
from bestiary.core.plugins import PluginHost


@pytest.fixture(scope="module")
def host() -> PluginHost:
    return PluginHost.load()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, host: PluginHost) -> Path:
    folder = tmp_path_factory.mktemp("made")
    make_engine(folder, host)
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BESTIARY_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("kind", ["engine", "ckpt"])
def test_an_export_is_the_source_bit_for_bit_and_goes(made: Path, host: PluginHost, home: Path, kind: str) -> None:
    with hf_directory(made / kind, host=host) as directory:
        found = load_file(directory / "model.safetensors")
        expected = load_file(made / "hf" / "model.safetensors")
        assert found.keys() == expected.keys()
        assert all(found[name].equal(expected[name]) for name in expected)
        assert (directory / "config.json").is_file()
    assert list(home.iterdir()) == []
    # The engine's files were linked, not moved.
    assert (made / kind / "model.safetensors").is_file() or list((made / kind).glob("weights*"))


def test_a_hugging_face_directory_is_itself(made: Path, host: PluginHost, home: Path) -> None:
    with hf_directory(made / "hf", host=host) as directory:
        assert directory == made / "hf"
    assert directory.is_dir() and not home.exists()


def test_nothing_is_left_where_the_work_fails(made: Path, host: PluginHost, home: Path) -> None:
    with pytest.raises(ZeroDivisionError), hf_directory(made / "engine", host=host):
        _ = 1 / 0
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("name", ["./missing", "not a model!"])
def test_what_is_no_model(host: PluginHost, name: Any) -> None:
    with pytest.raises(MissingInputError) as caught, hf_directory(name, host=host):
        pass
    assert isinstance(caught.value, BestiaryError)
