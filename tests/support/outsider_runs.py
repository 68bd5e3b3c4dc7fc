"""What the outsiders' tests run in a process that has both wheels: ``python outsider_runs.py WHAT``."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from bestiary import LLM, SamplingParams
from bestiary.ops import scaled_linear

PROMPTS: list[Any] = [{"prompt_token_ids": [3 + (7 * i + n) % 90 for i in range(n)]} for n in (1, 5, 19, 40)]
OURS = {"*": "anvil"}  # wherever Anvil has a kernel that can run the call


def heron(folder: Path, **changes: Any) -> Path:
    """A random Heron as a Hugging Face directory."""
    from bestiary_heron.conformance import SMALL
    from bestiary_heron.reference import HeronReference

    torch.manual_seed(0)
    config = {**SMALL, "windows": [7, None], **changes}
    (folder / "hf").mkdir()
    (folder / "hf" / "config.json").write_text(json.dumps(config))
    state = HeronReference(config).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "hf" / "model.safetensors")
    return folder / "hf"


def llama(folder: Path) -> Path:
    from tiny import make_hf

    make_hf(folder / "hf")
    return folder / "hf"


def answers(model: Path, **options: Any) -> list[list[int]]:
    """Greedy tokens of all prompts, with the engine checked by ``options``."""
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    with LLM(model, tokenizer=None, kv_cache_memory=2**22, **options) as llm:
        return [list(one.outputs[0].token_ids) for one in llm.generate(PROMPTS, params, use_tqdm=False)]


def together(folder: Path) -> None:
    """Heron on its own kernels and Anvil's, as its references say."""
    model = heron(folder)
    assert answers(model, kernels=OURS | {"heron::capped_attention": "row"}) == answers(model, reference=True)


def fused(folder: Path) -> None:
    """Anvil's fusion finds its place in a Llama, once a layer, and changes no token."""
    model = llama(folder)
    with LLM(model, tokenizer=None, kv_cache_memory=2**22) as llm:
        assert llm.engine.network.fusions["anvil-gated-linear"] == 3
    assert answers(model, kernels=OURS) == answers(model, reference=True)


def deterministic(folder: Path) -> None:
    """Heron's kernels claim to be batch-invariant, so alone and together are the same."""
    model = heron(folder)
    whole = answers(model, deterministic=True)
    with LLM(model, tokenizer=None, kv_cache_memory=2**22, deterministic=True) as llm:
        params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
        alone = [list(llm.generate(one, params, use_tqdm=False)[0].outputs[0].token_ids) for one in PROMPTS]
    assert whole == alone


def quantized(folder: Path) -> None:
    """Heron and Anvil know nothing of quantization, and take it: restored weights are what their kernels read."""
    with LLM(heron(folder), tokenizer=None, kv_cache_memory=2**22) as llm:
        engine = llm.engine.directory
    plain = answers(engine)
    for rules in ("int4", "fp8, lm_head=int8"):
        theirs = answers(engine, quantization=rules, kernels=OURS | {"heron::capped_attention": "row"})
        assert theirs == answers(engine, quantization=rules, reference=True) != plain
    # The reference mode has no quantized activations.
    assert answers(engine, quantization="w8a8", kernels=OURS) == answers(engine, quantization="w8a8")
    with LLM(engine, tokenizer=None, kv_cache_memory=2**22, quantization="w8a8") as llm:
        assert scaled_linear in {one.target for one in llm.engine.network.program.instructions}


def divided(folder: Path) -> None:
    """Two tensor-parallel ranks, and two pipeline stages, answer as one process does."""
    model = heron(folder)
    one = answers(model)
    assert answers(model, tensor_parallel=2) == one
    assert answers(model, pipeline_parallel=2) == one


def bestiary(*words: Any) -> str:
    """What a command prints, which must succeed."""
    from bestiary.core.cli.main import invoke

    with redirect_stdout(StringIO()) as printed:
        status = invoke([str(word) for word in words])
    assert status == 0, f"{words}: {status}\n{printed.getvalue()}"
    return printed.getvalue()


def compared(folder: Path) -> None:
    """diff holds Heron against its references, and an engine with Anvil's kernels against one without."""
    model = heron(folder)
    small = ("--device", "cpu", "--tokens", 24, "--json")
    found = json.loads(bestiary("diff", model, "--against", "reference", *small))
    assert found["within"] and {"heron::squared_relu", "rms_norm"} <= _made_by(found, "op")
    bestiary("convert", model, folder / "checkpoint")
    options = {"ours": ["--kernel", "rms_norm=anvil", "--kernel", "linear=anvil"], "theirs": ["--kernel", "*=torch"]}
    for name, said in options.items():
        bestiary("build", folder / "checkpoint", folder / name, "--device", "cpu", *said)
    found = json.loads(bestiary("diff", folder / "ours", "--against", folder / "theirs", *small))
    assert found["within"] and "anvil" in _made_by(found, "kernel")


def _made_by(found: Any, what: str) -> set[str]:
    return {step[what] for place in found["places"] for step in place["steps"]}


def watched(folder: Path) -> None:
    """trace knows Heron's ops by their names and times its kernels; taps see what the ops make, and change nothing."""
    model = heron(folder)
    found = json.loads(bestiary("trace", model, "--device", "cpu", "--prompt-tokens", 9, "-n", 3, "--json"))
    assert {one["name"] for one in found["ops"]} >= {"heron::capped_attention", "heron::squared_relu"}
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    with LLM(model, tokenizer=None, kv_cache_memory=2**22) as llm:
        plain, tapped = (
            llm.generate(PROMPTS[1], params, taps=taps, use_tqdm=False)[0]
            for taps in ((), ["layers.1", "layers.0.heron::squared_relu"])
        )
    assert tapped.outputs[0].token_ids == plain.outputs[0].token_ids
    assert {name: rows.shape for name, rows in tapped.taps.items()} == {
        "layers.1": (len(PROMPTS[1]["prompt_token_ids"]) + 3, 32),
        "layers.0.heron::squared_relu": (len(PROMPTS[1]["prompt_token_ids"]) + 3, 48),
    }


def measured(folder: Path) -> None:
    """quality and bench run Heron, with Anvil's kernels, as they run any model."""
    from text_models import byte_level

    tokenizer = byte_level()
    model = heron(folder, vocab_size=tokenizer.vocab_size)
    tokenizer.backend.save(str(model / "tokenizer.json"))
    (folder / "text").write_text("The one with a foreign stamp she keeps for last, by the harbour.")
    words = ("--text", folder / "text", "--window", 32, "--device", "cpu", "--kernel", "*=anvil", "--json", "-")
    found = json.loads(bestiary("quality", model, "--against", model, *words))
    (told,) = found["models"]
    assert told["divergence"]["mean"]["value"] < 1e-6
    bestiary("convert", model, folder / "checkpoint")
    bestiary("build", folder / "checkpoint", folder / "engine", "--device", "cpu", "--kernel", "*=anvil")
    load = ("--input", 8, "--output", 4, "-n", 1, "--warmup", 0, "--repeats", 1, "--json", "-")
    (point,) = json.loads(bestiary("bench", "latency", folder / "engine", *load))["points"]
    (request,) = point["runs"][0]["requests"]
    assert (request["error"], request["output_tokens"]) == (None, 4)


RUNS: dict[str, Callable[[Path], None]] = {
    "together": together,
    "fused": fused,
    "deterministic": deterministic,
    "quantized": quantized,
    "divided": divided,
    "compared": compared,
    "watched": watched,
    "measured": measured,
}

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        RUNS[sys.argv[1]](Path(made))
