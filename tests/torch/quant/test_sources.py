"""Quantized from every kind of model: the same answers, the planned memory, one sentence for what can't be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import make_hf

from bestiary import LLM, BestiaryError, ConfigError, SamplingParams
from bestiary.converters.convert import convert, foresee
from bestiary.converters.quantize import quantize
from bestiary.core.checkpoint.weights import Weights
from bestiary.core.cli.main import invoke
from bestiary.core.engine.build import build
from bestiary.core.engine.options import BuildOptions
from bestiary.core.planning import plan_memory
from bestiary.core.plugins import PluginHost

SMALL: dict[str, Any] = {"device": "cpu", "max_batch_size": 2, "max_num_tokens": 32, "max_seq_len": 64}
RULES = "int4:group=32, lm_head=int8"
STORED = {"quantization": RULES, "kv_dtype": "int8"}
GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


@pytest.fixture(scope="module")
def host() -> PluginHost:
    return PluginHost.load()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, host: PluginHost) -> Path:
    """A model as ``hf``, ``ckpt`` and ``engine``, and quantized as ``quantized.ckpt`` and ``quantized``."""
    folder = tmp_path_factory.mktemp("models")
    make_hf(folder / "hf", vocab_size=200, num_hidden_layers=1)
    convert(folder / "hf", folder / "ckpt", host=host)
    quantize(folder / "ckpt", folder / "quantized.ckpt", host=host, rules=RULES)
    for checkpoint, engine in (("ckpt", "engine"), ("quantized.ckpt", "quantized")):
        build(folder / checkpoint, folder / engine, host=host, options=BuildOptions(**SMALL))
    return folder


@pytest.fixture(autouse=True)
def home(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BESTIARY_HOME", str(models / "home"))


def opened(model: Path, **options: Any) -> LLM:
    return LLM(model, tokenizer=None, kv_cache_memory=2**20, **{**SMALL, **options})


def answers(model: Path, **options: Any) -> list[int]:
    with opened(model, **options) as llm:
        (output,) = llm.generate([{"prompt_token_ids": [5, 17, 90, 3]}], GREEDY, use_tqdm=False)
    return list(output.outputs[0].token_ids)


def test_from_every_source_it_answers_alike(models):
    found = {kind: answers(models / kind, **STORED) for kind in ("hf", "ckpt", "engine")}
    assert found["hf"] == found["ckpt"] == found["engine"] == answers(models / "quantized", kv_dtype="int8")
    assert found["hf"] == answers(models / "quantized.ckpt", kv_dtype="int8")
    assert len(answers(models / "hf", weights="random", **STORED)) == 6


@pytest.mark.parametrize("kind", ["hf", "ckpt", "engine", "quantized.ckpt", "quantized"])
def test_what_is_planned_is_held(models, host, kind):
    said = {**SMALL, **STORED}
    if kind.startswith("quantized"):
        del said["quantization"]
    planned = plan_memory(models / kind, host=host, said=said).shares
    with opened(models / kind, **said) as llm:
        held = {t.data_ptr(): t.nbytes for t in llm.engine.runner.program._weights.values()}
        assert llm.engine.network.geometry.kv_dtype == "int8"
    assert sum(held.values()) == planned.weights_mapped + planned.weights_made
    plain = plan_memory(models / "ckpt", host=host, said=SMALL).shares
    assert sum(held.values()) < 0.7 * (plain.weights_mapped + plain.weights_made)
    # A float32 element is four bytes; one of int8 is one, and a scale for each of 16 comes to it.
    assert planned.kv_cache < 0.5 * plain.kv_cache


def test_a_limit_is_kept_with_quantized_weights(models, host):
    said = {**SMALL, **STORED}
    shares = plan_memory(models / "engine", host=host, said=said).shares
    plain = plan_memory(models / "engine", host=host, said=SMALL).shares
    # What the process holds besides grows between the two.
    assert shares.total - shares.held < plain.total - plain.held
    with opened(models / "engine", **STORED, memory_limit=shares.total + 2**23) as llm:
        assert llm.engine.cache_groups[0].num_blocks > 0


def test_conversions_are_foreseen_with_their_true_bytes(models, host):
    plain = foresee(models / "hf", host)
    found = foresee(models / "hf", host, quantize=RULES)
    there = Weights.open(models / "quantized.ckpt").entries
    assert found.stored == {name: entry.dtype for name, entry in there.items()}
    assert found.nbytes == sum(entry.nbytes for entry in there.values()) < plain.nbytes
    assert set(found.methods) and not plain.methods


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("engine", {"quantization": "int4:quantizer=gptq"}, ("needs a calibration", "bestiary quantize")),
        ("hf", {"quantization": "w8a8:smooth=0.5"}, ("needs a calibration", "bestiary quantize")),
        ("quantized", {"quantization": "int8"}, ("quantized already", "build an engine of the plain checkpoint")),
        ("quantized.ckpt", {"quantization": "int8"}, ("quantized already", "quantize the checkpoint")),
        ("engine", {"kv_dtype": "int3"}, ("unknown dtype", "int4")),
        ("engine", {"quantization": "int4, *.nothing=int8"}, ("matches no module", "*.nothing")),
        ("ckpt", {"quantization": "int5"}, ("no installed plugin provides", "int4")),
        ("engine", {"quantization": "int4:group=48"}, ("group must be one of 32, 64, 128",)),
    ],
)
def test_what_can_not_be_is_said_in_a_sentence(models, model, options, words):
    with pytest.raises(ConfigError) as refused:
        opened(models / model, **options)
    assert isinstance(refused.value, BestiaryError) and all(word in str(refused.value) for word in words)


def test_commands_take_both(models, tmp_path, capsys):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt_token_ids": [5, 17, 90, 3]}))
    line = ["generate", str(models / "engine"), "--prompts", str(prompts), "-t", "0", "-n", "6", "--ignore-eos"]
    assert invoke([*line, "--quantize", RULES, "--kv-dtype", "int8", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["token_ids"] == answers(models / "quantized", kv_dtype="int8")
    line = [
        "bench",
        "latency",
        str(models / "engine"),
        "--option",
        f"quantization={RULES}",
        "--option",
        "kv_dtype=int8",
    ]
    measured = ["--input", "8", "--output", "4", "-n", "1", "--warmup", "0", "--repeats", "1", "--json", "-"]
    assert invoke([*line, *measured]) == 0
    assert "quantization" in capsys.readouterr().out
    assert invoke(["generate", str(models / "quantized"), "x", "--quantize", "int8"]) == 78
    assert "quantized already" in capsys.readouterr().err
