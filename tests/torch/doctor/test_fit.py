"""``bestiary doctor MODEL``: whether it fits the disk and the memory, and what else would."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import make_hf

from bestiary.core import home
from bestiary.core.cli.main import invoke
from bestiary.core.engine.options import BuildOptions
from bestiary.core.home import RESERVE
from bestiary.core.plugins import PluginHost
from bestiary.core.prepare import disk_needs, prepare
from bestiary.core.source import find_local

SMALL = ["--device", "cpu", "--max-batch-size", "2", "--max-seq-len", "64", "--max-num-tokens", "16"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("fit") / "hf"
    make_hf(directory, num_hidden_layers=1)
    return directory


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BESTIARY_HOME", str(tmp_path / "home"))

    def ask(model: Path | str, *options: str) -> tuple[int, dict[str, tuple[str, str]]]:
        status = invoke(["doctor", str(model), *options, "--no-self-test", "--json"])
        found = json.loads(capsys.readouterr().out)["sections"]["model"]
        return status, {one["subject"]: (one["level"], one["text"]) for one in found}

    return ask


def test_a_model_that_fits(model: Path, asked: Any) -> None:
    status, found = asked(model, *SMALL)
    assert status == 0, found
    assert found["model"] == ("ok", "hf: a model to convert, llama, float32")
    assert found["disk"][1].startswith("fits: ") and "to convert it" in found["disk"][1]
    assert found["memory"][1].startswith("fits: ") and "2 at a time of 64 tokens" in found["memory"][1]
    assert found["largest batch"] == ("ok", "16 of 64 tokens"), "as many as tokens in a step"
    assert found["longest sequence"][1].endswith(" tokens, 2 at a time")


def test_a_model_that_does_not_fit_the_memory(model: Path, asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bestiary.core.engine.memory.process_memory", lambda network: (2**20, 2**21))
    status, found = asked(model, *SMALL)
    assert status == 69 and found["memory"][0] == "error"
    assert "does not fit" in found["memory"][1] and "2.0 MiB on cpu" in found["memory"][1]


def test_a_smaller_batch_is_proposed_where_one_fits(model: Path, asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--device", "cpu", "--max-batch-size", "16", "--max-num-tokens", "16"]
    _, whole = asked(model, *options)
    from bestiary.core.planning import plan_memory

    said = {"device": "cpu", "max_batch_size": 16, "max_num_tokens": 16}
    plan = plan_memory(model, host=PluginHost.load(), said=said)
    few = plan.shares.total - plan.shares.kv_cache // 2
    monkeypatch.setattr("bestiary.core.engine.memory.process_memory", lambda network: (plan.shares.held, few))
    status, found = asked(model, *options)
    assert whole["memory"][0] == "ok" and (status, found["memory"][0]) == (69, "error")
    assert "lower --max-batch-size" in found["memory"][1]
    assert 0 < int(found["largest batch"][1].split()[0]) < 16


def test_a_model_that_does_not_fit_the_disk(model: Path, asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(model)
    monkeypatch.setattr(home.shutil, "disk_usage", lambda folder: usage._replace(free=RESERVE))
    status, found = asked(model, *SMALL)
    assert status == 69 and found["disk"][0] == "error" and "does not fit" in found["disk"][1]
    assert found["memory"][0] == "ok", "the memory is asked all the same"


def test_what_is_said_of_the_disk_is_what_is_written(model: Path, asked: Any, tmp_path: Path) -> None:
    host, options = PluginHost.load(), BuildOptions(device="cpu", max_batch_size=2, max_seq_len=64, max_num_tokens=16)
    source = find_local(model, host)
    before = disk_needs(source, host=host, options=options)
    engine = prepare(model, host=host, options=options)
    weights = sum(path.stat().st_size for path in engine.glob("*.safetensors"))
    assert before.convert <= weights < before.convert + 4096, "the tensors; a header comes on top"
    assert disk_needs(source, host=host, options=options) == before._replace(built=True, convert=0)
    _, found = asked(model, *SMALL)
    assert found["disk"][1] == "nothing is needed, its engine is there"
    _, found = asked(engine)
    assert found["model"][1].endswith(": an engine, llama, float32") and "longest sequence" in found
    narrow = prepare(model, host=host, options=replace(options, dtype="bfloat16"))
    assert asked(narrow)[1]["model"][1].endswith(": an engine, llama, bfloat16"), "not the dtype of its checkpoint"


@pytest.mark.parametrize(
    ("name", "options", "code"),
    [
        ("./nowhere", [], "E-MODEL-MISSING"),
        ("nobody/nothing-of-that-name", [], "E-HUB-OFFLINE"),
        ("HF", ["--max-seq-len", "100000"], "E-BUILD-OPTION"),
        ("HF", ["--kernel", "linear=nonesuch"], "E-KERNEL-NAME"),
        ("HF", ["--dtype", "int3"], "E-BUILD-OPTION"),
    ],
)
def test_bad_input_is_one_finding(model: Path, asked: Any, name: str, options: list[str], code: str) -> None:
    status, found = asked(str(model) if name == "HF" else name, *options)
    assert status == 69
    ((level, text),) = [one for one in found.values() if one[0] != "ok"]
    assert level == "error" and text.endswith(f"[{code}]")


def test_options_without_a_model_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["doctor", "--max-batch-size", "3"]) == 2
    assert "[E-CLI-DOCTOR]" in capsys.readouterr().err


def test_a_config_alone_is_planned(model: Path, asked: Any, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    shutil.copy(model / "config.json", tmp_path / "bare")
    status, found = asked(tmp_path / "bare", *SMALL)
    assert status == 0 and found["disk"] == ("note", "there are no weights to convert, only a config")
