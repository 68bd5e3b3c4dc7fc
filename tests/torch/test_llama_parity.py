"""Random tiny Llamas made with transformers: the engine gives their logits and their greedy tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CONFIGS, load, logits, make_engine, opened, step, whole

from bestiary import LLM, SamplingParams
from bestiary.converters.export import export
from bestiary.core.engine.build import build
from bestiary.core.engine.options import BuildOptions
from bestiary.core.plugins import PluginHost

HOST = PluginHost.load(strict=True)


@pytest.fixture(scope="module", params=CONFIGS)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any]:
    directory = tmp_path_factory.mktemp(request.param)
    return request.param, directory, make_engine(directory, HOST, **CONFIGS[request.param])


def _tokens(count: int, seed: int = 1) -> list[int]:
    return torch.randint(3, 96, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def _reference(model: Any, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0]


def test_logits_of_a_prompt(tiny: tuple[str, Path, Any]) -> None:
    _name, directory, model = tiny
    tokens = _tokens(30)
    found = logits(load(directory, HOST), whole(tokens, [5, 2]))
    assert (found - _reference(model, tokens)).abs().max() < 1e-4


def test_logits_in_chunks_mixed_with_decodes(tiny: tuple[str, Path, Any]) -> None:
    """Two requests in scattered blocks, one decoding while the other's prompt comes in pieces."""
    _name, directory, model = tiny
    engine = load(directory, HOST)
    first, second = _tokens(24), _tokens(20, seed=2)
    logits(engine, step((0, first[:22]), new=[opened(0, first)], blocks={0: [[7, 3]]}))
    new = [opened(1, second)]
    a = logits(engine, step((0, first[22:23]), (1, second[:9]), new=new, blocks={1: [[1, 4]]}, rows=[0])).clone()
    engine.runner.inputs.state.last[0] = first[23]
    b = logits(engine, step((1, second[9:]), decodes=[0])).clone()
    for found, tokens in ((a[0], first[:23]), (b[0], first), (b[1], second)):
        assert (found - _reference(model, tokens)[-1]).abs().max() < 1e-4


def test_the_step_program_equals_the_eager_reference_mode(tiny: tuple[str, Path, Any]) -> None:
    _name, directory, _model = tiny
    message = whole(_tokens(30), [5, 2])
    eager = logits(load(directory, HOST, reference=True), message)
    # On the references themselves merging products can still change the order in which a processor's library sums.
    for kernels in ({}, {"*": "reference"}):
        assert (logits(load(directory, HOST, kernels=kernels), message) - eager).abs().max() < 1e-5


def test_greedy_tokens(tiny: tuple[str, Path, Any], count_ties: Callable[[str, int, int], None]) -> None:
    """Teacher-forced on our own tokens: each is the reference's argmax or within 1e-4 of it."""
    name, directory, model = tiny
    prompt = _tokens(12, seed=3)
    # Beyond the 32 positions of dynamic rope one pass is not what generation does; a test below goes there.
    room = 20 if name == "rope_dynamic" else 32
    with LLM(directory / "engine", tokenizer=None, kv_cache_memory=2**24) as llm:
        params = SamplingParams(temperature=0, max_tokens=room, ignore_eos=True)
        (answer,) = llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
    chosen = answer.outputs[0].token_ids
    assert len(chosen) == room
    rows = _reference(model, prompt + list(chosen))[len(prompt) - 1 : -1]
    gaps = rows.max(-1).values - rows.gather(1, torch.tensor(chosen).unsqueeze(1)).squeeze(1)
    assert gaps.max() <= 1e-4
    count_ties(f"tiny Llama {name}", int((gaps > 0).sum()), room)


def test_export_gives_the_source_back(tiny: tuple[str, Path, Any], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    _name, directory, _model = tiny
    export(directory / "ckpt", tmp_path / "hf", host=HOST)
    source, back = (load_file(path / "model.safetensors") for path in (directory / "hf", tmp_path / "hf"))
    assert source.keys() == back.keys()
    for tensor in source:
        assert torch.equal(source[tensor], back[tensor]), tensor


def test_dynamic_rope_beyond_its_first_length_follows_generation(tmp_path: Path) -> None:
    """A prompt longer than the original context, then tokens one by one, as transformers generates with its cache."""
    model = make_engine(tmp_path, HOST, **CONFIGS["rope_dynamic"])
    prompt = _tokens(50, seed=5)
    with LLM(tmp_path / "engine", tokenizer=None, kv_cache_memory=2**24) as llm:
        params = SamplingParams(temperature=0, max_tokens=32, ignore_eos=True, logprobs=0)
        (answer,) = llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
    theirs = model.generate(
        torch.tensor([prompt]), max_new_tokens=32, min_new_tokens=32, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert list(answer.outputs[0].token_ids) == theirs[0, 50:].tolist()


def test_bfloat16_is_no_farther_from_float32_than_transformers(tmp_path: Path) -> None:
    model = make_engine(tmp_path, HOST)
    options = BuildOptions(device="cpu", dtype="bfloat16", max_batch_size=4, max_num_tokens=64)
    build(tmp_path / "ckpt", tmp_path / "half" / "engine", host=HOST, options=options)
    tokens = _tokens(30)
    exact = _reference(model, tokens)
    rounded = logits(load(tmp_path / "half", HOST), whole(tokens, [5, 2]))
    assert rounded.dtype is torch.float32, "logits keep their precision"
    theirs = (_reference(model.bfloat16(), tokens).float() - exact).square().mean().sqrt()
    assert (rounded - exact).square().mean().sqrt() < 1.25 * theirs
