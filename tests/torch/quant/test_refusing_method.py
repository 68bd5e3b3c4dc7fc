"""A plugin's method that refuses some shapes is asked for no other shapes than the model's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import quantizations
import torch
from tiny import logits, make_engine, whole

from bestiary import LLM, BestiaryError, ConfigError
from bestiary.converters.quantize import quantize
from bestiary.core.cli.main import invoke
from bestiary.core.engine.build import build
from bestiary.core.engine.load import load_engine
from bestiary.core.engine.options import BuildOptions
from bestiary.core.plugins import PluginHost

HOST = PluginHost.load(plugins=[quantizations])
OPTIONS = BuildOptions(device="cpu", max_num_tokens=64, kernels={"*": "torch"})
MESSAGE = whole([3 + (11 * i * i + i) % 90 for i in range(30)], [5, 2])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    make_engine(directory, HOST, OPTIONS, num_hidden_layers=1)
    quantize(directory / "ckpt", directory / "quantized", host=HOST, rules="divided")
    return directory


def test_it_is_quantized_built_loaded_and_answers(tiny: Path, tmp_path: Path) -> None:
    build(tiny / "quantized", tmp_path / "engine", host=HOST, options=OPTIONS)
    right = load_engine(tiny / "engine", host=HOST, num_blocks=8, quantization="generous")
    expected, merged = logits(right, MESSAGE).clone(), products(right)
    stored = load_engine(tmp_path / "engine", host=HOST, num_blocks=8)
    assert torch.equal(logits(stored, MESSAGE), expected) and products(stored) == merged
    made = load_engine(tiny / "engine", host=HOST, num_blocks=8, quantization="divided")
    assert torch.equal(logits(made, MESSAGE), expected)
    apart = load_engine(tiny / "engine", host=HOST, num_blocks=8, quantization="apart")
    assert torch.allclose(logits(apart, MESSAGE), expected, atol=1e-5)
    assert products(apart) == merged + 3, "q, k, v and gate, up are products of their own"


def products(engine: object) -> int:
    program = engine.network.program  # type: ignore[attr-defined]
    return sum("linear" in one.target.name for one in program.instructions if hasattr(one.target, "results"))


def test_what_it_refuses_is_a_sentence_in_every_place(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = r"layers.0.attention.q.weight: 48 columns are no multiple of 7; found shape \[48, 48\]"
    build(tiny / "quantized", tmp_path / "engine", host=HOST, options=OPTIONS)
    with pytest.raises(ConfigError, match=problem):
        LLM(tiny / "engine", quantization="divided:group=7", plugins=[quantizations], tokenizer=None)
    (tiny / "quantized").rename(tmp_path / "quantized")
    for place in ("quantized/bestiary.json", "engine/engine.json"):  # as another version of the plugin made them
        file = tmp_path / place
        file.write_text(json.dumps(json.loads(file.read_text())).replace('"group": 8', '"group": 7'))
    with pytest.raises(BestiaryError, match=problem):
        LLM(tmp_path / "engine", plugins=[quantizations], tokenizer=None)
    capsys.readouterr()
    assert invoke(["-p", "quantizations", "build", str(tmp_path / "quantized"), str(tmp_path / "other")]) == 78
    said = capsys.readouterr().err.strip().splitlines()
    assert "48 columns are no multiple of 7" in said[-1] and said[-1].endswith("[E-BUILD-QUANTIZATION]")
