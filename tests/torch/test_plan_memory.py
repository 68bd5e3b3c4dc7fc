"""``bestiary plan-memory``: of every kind of model, from headers alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import make_hf

from bestiary import UsageError
from bestiary.converters.convert import convert
from bestiary.core.checkpoint.weights import Weights
from bestiary.core.cli.main import invoke
from bestiary.core.engine.build import build
from bestiary.core.engine.options import BuildOptions
from bestiary.core.home import bytes_of
from bestiary.core.plugins import PluginHost


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``hf``, ``ckpt`` and ``engine`` of a model."""
    directory, host = tmp_path_factory.mktemp("models"), PluginHost.load()
    make_hf(directory / "hf", vocab_size=4000, num_hidden_layers=2, tie_word_embeddings=True)
    convert(directory / "hf", directory / "ckpt", host=host)
    options = BuildOptions(device="cpu", max_batch_size=4, max_num_tokens=64, max_seq_len=128)
    build(directory / "ckpt", directory / "engine", host=host, options=options)
    return directory


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GiB", 2**32), ("1.5 KiB", 1536), (77, 77), ("0", None), ("4GB", None), ("-1", None), (True, None)],
)
def test_sizes(text, size):
    if size is None:
        with pytest.raises(UsageError, match="is not a size"):
            bytes_of(text, "--memory")
    else:
        assert bytes_of(text, "--memory") == size


@pytest.fixture
def no_data(monkeypatch, tmp_path):
    """Reading a weight fails, and a cache that must stay empty."""
    monkeypatch.setattr(Weights, "raw", lambda *_: pytest.fail("a weight was read"))
    monkeypatch.setattr(Weights, "tensor", lambda *_: pytest.fail("a weight was read"))
    monkeypatch.setenv("BESTIARY_HOME", str(tmp_path / "home"))
    yield
    assert not (tmp_path / "home").exists()


ASKED = ["--device", "cpu", "--max-batch-size", "3", "--max-seq-len", "64", "--max-num-tokens", "32"]


def test_the_command_says_the_same_of_every_kind_of_model(models, no_data, capsys):
    (models / "bare").mkdir(exist_ok=True)
    (models / "bare" / "config.json").write_text((models / "hf" / "config.json").read_text())
    found = []
    for kind in ("hf", "ckpt", "bare"):
        assert invoke(["plan-memory", str(models / kind), *ASKED, "--json"]) == 0
        plan = json.loads(capsys.readouterr().out)
        assert plan["total"] == sum(plan["bytes"].values())
        assert plan["bytes"].pop("held") > 0
        found.append(plan["bytes"])
    assert found[0] == found[1] == found[2]
    assert found[0]["weights_mapped"] and found[0]["weights_made"] and found[0]["kv_cache"]


def test_of_a_hub_id_only_the_json_files_are_fetched(models, no_data, monkeypatch, capsys):
    asked = []

    def fetched(hub_id: str, progress: Any, files: Any) -> Path:
        asked.append((hub_id, files))
        (models / "fetched").mkdir(exist_ok=True)
        (models / "fetched" / "config.json").write_text((models / "hf" / "config.json").read_text())
        return models / "fetched"

    monkeypatch.setattr("bestiary.core.planning.fetch", fetched)
    assert invoke(["plan-memory", "someone/model", *ASKED]) == 0
    assert asked == [("someone/model", ("*.json",))]
    assert "KV cache" in capsys.readouterr().out


def test_the_command_plans_an_engine_with_its_own_options(models, no_data, capsys):
    assert invoke(["plan-memory", str(models / "engine"), "--max-batch-size", "2", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["max_batch_size"], plan["max_seq_len"]) == (2, 128)
    assert invoke(["plan-memory", str(models / "engine"), "--block-size", "4"]) == 78
    assert "E-ENGINE-OPTION" in capsys.readouterr().err


def test_the_command_gives_a_rank_its_share(models, no_data, capsys):
    shares = []
    for ranks in ("1", "2"):
        assert invoke(["plan-memory", str(models / "ckpt"), *ASKED, "--tp", ranks, "--json"]) == 0
        shares.append(json.loads(capsys.readouterr().out)["bytes"])
    assert shares[1]["kv_cache"] * 2 == shares[0]["kv_cache"]
    whole, half = (s["weights_mapped"] + s["weights_made"] for s in shares)
    assert half < 0.6 * whole


def test_not_fitting_is_an_answer_and_fails_only_when_asked_to(models, no_data, capsys):
    line = ["plan-memory", str(models / "hf"), *ASKED, "--memory", "1MiB"]
    assert invoke(line) == 0
    printed = capsys.readouterr()
    assert "does not fit into 1,048,576 bytes (1.0 MiB): without any cache it takes" in printed.out
    assert "largest batch at 64 tokens: 0\n" in printed.out and "Traceback" not in printed.err
    assert invoke([*line, "--check"]) == 78
    assert invoke([*line[:-1], "1000GiB", "--check"]) == 0
    printed = capsys.readouterr()
    assert "\nfits into" in printed.out
    assert "largest batch at 64 tokens: 32 (by max_num_tokens: a step has a token for each)\n" in printed.out
