"""Quantized weights and caches on a CUDA device: the log-probabilities are the processor's, recorded steps or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_engine

from bestiary import LLM, SamplingParams
from bestiary.core.engine.options import BuildOptions
from bestiary.core.plugins import PluginHost
from bestiary.quant import FP8

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
PROMPTS: list[Any] = [{"prompt_token_ids": [3 + i * i % 90 for i in range(n)]} for n in (1, 7, 40, 100)]
PARAMS = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, prompt_logprobs=0)
# A code that rounds to its neighbour's changes a log-probability by more than a sum's order does.
WEIGHTS = {"int8": 1e-3, "int4:group=32": 1e-3, "int4:group=64:zeros=integer": 1e-3, "w8a8": 3e-2}
CACHES = {"int8": 3e-2, "fp8": 0.1, "int4": 0.3}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_engine(folder, PluginHost.load(), BuildOptions(device="cpu"))
    return folder / "hf"


def answers(model: Path, device: str, prompts: list[Any] = PROMPTS, **options: Any) -> tuple[list[Any], int]:
    """Log-probabilities of each prompt's tokens and the tokens of each answer, and how many steps were recorded."""
    said: Any = {"device": device, "dtype": "float32", "tokenizer": None, "kv_cache_memory": 2**24, **options}
    with LLM(model, **said) as llm:
        outs = llm.generate(prompts, PARAMS, use_tqdm=False)
        graphs = llm.engine.runner.num_graphs if device == "cuda" else 0
    scores = [[one.logprob for row in out.prompt_logprobs[1:] for one in row.values()] for out in outs]
    return [(row, out.outputs[0].token_ids) for row, out in zip(scores, outs, strict=True)], graphs


def furthest(found: list[Any], expected: list[Any]) -> float:
    return max(
        abs(a - b)
        for (row, _), (other, _) in zip(found, expected, strict=True)
        for a, b in zip(row, other, strict=True)
    )


@pytest.mark.parametrize("rules", WEIGHTS)
def test_weights_mean_what_they_mean_on_the_processor(rules: str, model: Path) -> None:
    found, graphs = answers(model, "cuda", quantization=rules)
    plain, _ = answers(model, "cuda", quantization=rules, graphs=False)
    expected, _ = answers(model, "cpu", quantization=rules)
    assert graphs > 0 and found == plain
    assert furthest(found, expected) < WEIGHTS[rules]
    assert furthest(found, answers(model, "cuda")[0]) > 1e-4  # they are quantized


@pytest.mark.parametrize("weights", ["row", "tensor", "block"])
def test_products_of_fp8(weights: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the processor with the same codes of activations, which engines on processors leave whole."""
    rules = f"fp8:weights={weights}"
    found, graphs = answers(model, "cuda", quantization=rules)
    whole, _ = answers(model, "cpu", quantization=rules)
    monkeypatch.setattr(FP8, "storage_only", lambda self, device: False)
    expected, _ = answers(model, "cpu", quantization=rules)
    assert graphs > 0
    assert furthest(found, expected) < 0.1 < furthest(found, whole)


@pytest.mark.parametrize("kind", CACHES)
def test_caches_mean_what_they_mean_on_the_processor(kind: str, model: Path) -> None:
    found, graphs = answers(model, "cuda", kv_dtype=kind)
    expected, _ = answers(model, "cpu", kv_dtype=kind)
    alone = [answers(model, "cuda", [prompt], kv_dtype=kind)[0][0] for prompt in PROMPTS]
    assert graphs > 0
    assert furthest(found, expected) < CACHES[kind]
    assert [tokens for _, tokens in found] == [tokens for _, tokens in alone]
    assert furthest(found, answers(model, "cuda")[0]) > 1e-5


def test_both_at_once_in_sixteen_bits(model: Path) -> None:
    options = {"quantization": "int4:group=32, lm_head=int8", "kv_dtype": "int8", "dtype": "bfloat16"}
    found, graphs = answers(model, "cuda", **options)
    expected, _ = answers(model, "cpu", **options)
    assert graphs > 0
    assert furthest(found, expected) < 0.3
