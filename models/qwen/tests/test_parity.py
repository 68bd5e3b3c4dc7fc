"""Random tiny Qwens made with transformers: the engine gives their logits and their greedy tokens."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny import load, logits, whole

from bestiary import LLM, SamplingParams
from bestiary.converters.convert import convert
from bestiary.converters.export import export
from bestiary.core.engine.build import build
from bestiary.core.engine.options import BuildOptions
from bestiary.core.plugins import PluginHost
from bestiary_qwen.plugin import ARCHITECTURES

HOST = PluginHost.load(strict=True)
CASES = [
    (title, name, config)
    for package, title in ARCHITECTURES.items()
    for name, config in importlib.import_module(f"bestiary_qwen.{package}.conformance").CONFIGS.items()
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    title, name, config = request.param
    directory = tmp_path_factory.mktemp(name)
    torch.manual_seed(0)
    made = getattr(transformers, f"{title}ForCausalLM")(getattr(transformers, f"{title}Config")(**config)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    made.save_pretrained(directory / "hf")
    convert(directory / "hf", directory / "ckpt", host=HOST)
    small = BuildOptions(device="cpu", max_batch_size=4, max_num_tokens=64)
    build(directory / "ckpt", directory / "engine", host=HOST, options=small)
    return directory, made


def test_logits(tiny):
    directory, made = tiny
    tokens = torch.randint(3, 96, (30,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.no_grad():
        expected = made(torch.tensor([tokens])).logits[0]
    engine = load(directory, HOST)
    blocks = [[5, 2], [3, 1]][: len(engine.runner.inputs.store.groups)]
    found = logits(engine, whole(tokens, *blocks))
    print("DIFF", (found - expected).abs().max().item(), expected.abs().max().item())
    assert (found - expected).abs().max() < 1e-4


def test_greedy(tiny):
    directory, made = tiny
    prompt = torch.randint(3, 96, (40,), generator=torch.Generator().manual_seed(3)).tolist()
    with LLM(directory / "engine", tokenizer=None, kv_cache_memory=2**24) as llm:
        params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
        (answer,) = llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
    chosen = list(answer.outputs[0].token_ids)
    with torch.no_grad():
        rows = made(torch.tensor([prompt + chosen])).logits[0][len(prompt) - 1 : -1]
    gaps = rows.max(-1).values - rows.gather(1, torch.tensor(chosen).unsqueeze(1)).squeeze(1)
    assert gaps.max() <= 1e-4


def test_export(tiny, tmp_path):
    directory, made = tiny
    export(directory / "ckpt", tmp_path / "hf", host=HOST)
    source, back = (load_file(path / "model.safetensors") for path in (directory / "hf", tmp_path / "hf"))
    assert source.keys() == back.keys() and all(torch.equal(source[t], back[t]) for t in source)
