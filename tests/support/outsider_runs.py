"""What the outsiders' tests run in a process that has both wheels: ``python outsider_runs.py WHAT``."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from bestiary import LLM, SamplingParams
from bestiary.ops import scaled_linear

PROMPTS: list[Any] = [{"prompt_token_ids": [3 + (7 * i + n) % 90 for i in range(n)]} for n in (1, 5, 19, 40)]
OURS = {"*": "anvil"}  # wherever Anvil has a kernel that can run the call


def heron(folder: Path) -> Path:
    """A random Heron as a Hugging Face directory."""
    from bestiary_heron.conformance import SMALL
    from bestiary_heron.reference import HeronReference

    torch.manual_seed(0)
    config = {**SMALL, "windows": [7, None]}
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


RUNS: dict[str, Callable[[Path], None]] = {
    "together": together,
    "fused": fused,
    "deterministic": deterministic,
    "quantized": quantized,
    "divided": divided,
}

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        RUNS[sys.argv[1]](Path(made))
