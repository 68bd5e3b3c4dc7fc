"""``bestiary quantize --kv-dtype``: the scales of a cache are of what the quantized model itself writes to it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_hf, whole

from bestiary.converters.convert import convert
from bestiary.converters.quantize import Calibration, quantize
from bestiary.core.checkpoint import Checkpoint
from bestiary.core.checkpoint.verify import verify
from bestiary.core.cli.main import invoke
from bestiary.core.engine.build import build
from bestiary.core.engine.load import load_engine
from bestiary.core.engine.options import BuildOptions
from bestiary.core.errors import ConfigError
from bestiary.core.kv_format import KINDS
from bestiary.core.plugins import PluginHost
from bestiary.core.quant import layerwise

TOKENS = [3, 7, 40, 1, 0, 22, 95, 11, 60, 61, 5, 5, 33]
HEADS = 4
CACHES = [f"layers.{layer}.attention.cache" for layer in range(2)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``ckpt`` is a model with as many heads of values as of queries, so that a value's rows can take up scales."""
    made = tmp_path_factory.mktemp("model")
    make_hf(made / "hf", num_hidden_layers=2, num_attention_heads=HEADS, num_key_value_heads=HEADS)
    convert(made / "hf", made / "ckpt", host=PluginHost.load())
    (made / "text.jsonl").write_text("\n".join(json.dumps({"tokens": part}) for part in (TOKENS[:8], TOKENS)))
    return made


def loaded(checkpoint: Path, target: Path, **options: Any) -> Any:
    host = PluginHost.load()
    build(checkpoint, target, host=host, options=BuildOptions(device="cpu", max_num_tokens=64))
    return load_engine(target, host=host, num_blocks=4, **options)


@pytest.mark.parametrize(
    ("kind", "largest", "rules"),
    [("int8", 127, None), ("fp8", 448, "int8"), ("int4", 7, "w8a8:smooth=0.7")],
)
def test_scales_are_of_what_the_model_writes(
    directory: Path, tmp_path: Path, kind: str, largest: int, rules: Any
) -> None:
    calibration = Calibration(directory / "text.jsonl")
    host, target = PluginHost.load(), tmp_path / "ckpt"
    report = quantize(directory / "ckpt", target, host=host, rules=rules, calibration=calibration, kv_dtype=kind)
    verify(target, host=host)
    found = Checkpoint.open(target)
    said = found.manifest.quantization
    assert report.kv_dtype == kind
    assert {path: said[path] for path in CACHES} == {path: {"method": "kv_scales", "kind": kind} for path in CACHES}
    assert len(said) == len(CACHES) + sum(report.quantized.values())
    # What an engine of this checkpoint writes to a cache of fp32.
    engine = loaded(target, tmp_path / "engine", kv_dtype="float32")
    engine.runner.forward(whole(TOKENS, [0]))
    for path in CACHES:
        for name in "kv":
            scale = found.weights.tensor(f"{path}.{name}_scale")
            written = engine.runner.inputs.store.tensors[f"{name}.{path}"][0, : len(TOKENS)]
            expected = written.float().abs().amax((0, 2)) / largest
            assert scale.shape == (HEADS,) and scale.dtype is torch.float32
            # The layer's own weights are as quantized; activations in 8 bits are not part of a calibration.
            assert torch.allclose(scale, expected, rtol=0.05 if rules and "w8a8" in rules else 1e-4)
    # An engine with a cache of that kind has the scales, another does without.
    for other in KINDS:
        engine = load_engine(tmp_path / "engine", host=host, num_blocks=4, kv_dtype=other)
        names = {weight.name for weight in engine.network.program.weights() if weight.name.endswith("_scale")}
        assert names == ({f"{path}.{name}_scale" for path in CACHES for name in "kv"} if other == kind else set())


def test_weights_stay_as_they_are_without_rules(directory: Path, tmp_path: Path) -> None:
    quantize(
        directory / "ckpt", tmp_path / "ckpt", host=PluginHost.load(), rules=None,
        calibration=Calibration(directory / "text.jsonl"), kv_dtype="int8",
    )  # fmt: skip
    before, after = (Checkpoint.open(path).weights for path in (directory / "ckpt", tmp_path / "ckpt"))
    assert after.entries.keys() - before.entries.keys() == {f"{path}.{name}_scale" for path in CACHES for name in "kv"}
    assert all(torch.equal(before.tensor(name), after.tensor(name)) for name in before.entries)
    with pytest.raises(ConfigError, match="is quantized already; found kv_scales"):
        quantize(tmp_path / "ckpt", tmp_path / "twice", host=PluginHost.load(), rules="int8")
    assert not (tmp_path / "twice").exists()


def test_weights_that_are_quantized_already_can_get_scales(directory: Path, tmp_path: Path) -> None:
    host, text = PluginHost.load(), Calibration(directory / "text.jsonl")
    quantize(directory / "ckpt", tmp_path / "int4", host=host, rules="int4:group=32")
    report = quantize(tmp_path / "int4", tmp_path / "after", host=host, rules=None, calibration=text, kv_dtype="int8")
    quantize(
        directory / "ckpt", tmp_path / "at_once", host=host, rules="int4:group=32", calibration=text, kv_dtype="int8"
    )
    verify(tmp_path / "after", host=host)
    after, at_once = (Checkpoint.open(tmp_path / name) for name in ("after", "at_once"))
    assert after.manifest.quantization == at_once.manifest.quantization
    assert after.weights.entries.keys() == at_once.weights.entries.keys()
    for name in at_once.weights.entries:
        assert torch.equal(after.weights.tensor(name), at_once.weights.tensor(name)), name
    assert (report.quantized, report.plain) == ({}, 7)


def test_scales_are_of_all_steps(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def scales(name: str) -> dict[str, torch.Tensor]:
        quantize(
            directory / "ckpt", tmp_path / name, host=PluginHost.load(), rules=None,
            calibration=Calibration(directory / "text.jsonl"), kv_dtype="int8",
        )  # fmt: skip
        weights = Checkpoint.open(tmp_path / name).weights
        return {one: weights.tensor(one).clone() for one in weights.entries if one.endswith("_scale")}

    together = scales("together")
    (directory / "text.jsonl").write_text("\n".join(reversed((directory / "text.jsonl").read_text().splitlines())))
    monkeypatch.setattr(layerwise, "_TOKENS", 1)  # each sequence is a step
    apart = scales("apart")
    assert together.keys() == apart.keys()
    for name, scale in together.items():
        torch.testing.assert_close(apart[name], scale)


@pytest.mark.parametrize(
    ("rules", "scaled"),
    [
        ("int4:group=32:quantizer=awq, *.q_proj=int8", True),
        ("int4:group=32:quantizer=awq, *.q_proj=none", True),
        ("w8a8:smooth=0.5, *.q_proj=int8", True),
        ("int8", False),
    ],
)
def test_a_rule_for_one_reader_leaves_the_others_their_scales(
    directory: Path, tmp_path: Path, rules: str, scaled: bool
) -> None:
    text = Calibration(directory / "text.jsonl")
    quantize(directory / "ckpt", tmp_path / "out", host=PluginHost.load(), rules=rules, calibration=text)
    before, after = (Checkpoint.open(path).weights for path in (directory / "ckpt", tmp_path / "out"))
    name = "layers.0.attention_norm.weight"
    assert torch.equal(before.tensor(name), after.tensor(name)) != scaled


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ([], 2, r"--method or --kv-dtype: missing"),
        (["--kv-dtype", "int8"], 78, r"kv_dtype int8: needs a calibration"),
        (["--kv-dtype", "int5", "--calibration", "TEXT"], 78, r"kv_dtype: no cache of few bits; found 'int5', expected int8, fp8, int4"),
        (["--kv-dtype", "int8", "--calibration", "nowhere.txt"], 66, r"nowhere\.txt"),
    ],
)  # fmt: skip
def test_what_is_refused_is_said(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], status: int, said: str
) -> None:
    words = [str(directory / "text.jsonl") if word == "TEXT" else word for word in words]
    assert invoke(["quantize", str(directory / "ckpt"), str(tmp_path / "out"), *words]) == status
    error = capsys.readouterr().err
    assert re.search(said, error.replace("\n", " ")), error
    assert not (tmp_path / "out").exists()


def test_the_command_writes_scales(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--kv-dtype", "int8", "--calibration", str(directory / "text.jsonl"), "--samples", "1", "--json"]
    assert invoke(["quantize", str(directory / "ckpt"), str(tmp_path / "out"), *words]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["kv_dtype"], report["quantized"]) == ("int8", {})
    assert "layers.1.attention.cache.v_scale" in Checkpoint.open(tmp_path / "out").weights.entries
