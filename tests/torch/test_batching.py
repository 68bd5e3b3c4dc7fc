"""Requests that run together get the tokens they get alone, whatever the memory, the blocks and the cache groups."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SMALL, load, make_engine
from torch import nn

from bestiary import LLM, Model, SamplingParams, hookimpl
from bestiary.core.engine.options import BuildOptions
from bestiary.core.plugins import PluginHost
from bestiary.core.runtime.loop import EngineLoop
from bestiary.core.runtime.scheduler import Scheduler
from bestiary.layers import Attention, CausalLM, Embedding, GatedMLP, Head, LayerStack, RMSNorm, Step
from bestiary.spec import ModelConfig

_random = random.Random(7)
REQUESTS = [
    ([_random.randrange(3, 96) for _ in range(_random.randint(1, 200))], _random.randint(1, 64)) for _ in range(32)
]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    options = BuildOptions(device="cpu", max_batch_size=32, max_num_tokens=128, block_size=16)
    make_engine(directory, PluginHost.load(), options)
    return directory


def _generate(llm: LLM, requests: list[tuple[list[int], int]]) -> list[list[int]]:
    prompts = [{"prompt_token_ids": prompt} for prompt, _ in requests]
    params = [SamplingParams(temperature=0, max_tokens=count, ignore_eos=True) for _, count in requests]
    return [list(answer.outputs[0].token_ids) for answer in llm.generate(prompts, params, use_tqdm=False)]


@pytest.fixture(scope="module")
def alone(engine: Path) -> list[list[int]]:
    with LLM(engine / "engine", tokenizer=None, kv_cache_memory=2**24, prefix_caching=False) as llm:
        return [_generate(llm, [request])[0] for request in REQUESTS]


def test_requests_have_the_lengths_they_asked_for(alone: list[list[int]]) -> None:
    assert [len(tokens) for tokens in alone] == [count for _, count in REQUESTS]


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_together_as_alone(engine: Path, alone: list[list[int]], prefix_caching: bool) -> None:
    with LLM(engine / "engine", tokenizer=None, kv_cache_memory=2**24, prefix_caching=prefix_caching) as llm:
        assert _generate(llm, REQUESTS) == alone
        assert _generate(llm, REQUESTS) == alone, "again, with what the first run left in the cache"


def test_in_a_pool_so_small_that_requests_wait(engine: Path, alone: list[list[int]]) -> None:
    """The pool holds one of the longest requests, or a few of the short ones."""
    loaded = load(engine, PluginHost.load(), num_blocks=17)
    with LLM(engine / "engine", tokenizer=None, kv_cache_memory=2**24) as llm:
        llm._loop = EngineLoop(loaded.runner, Scheduler(loaded.cache_groups, max_batch_size=32, max_num_tokens=128))
        assert _generate(llm, REQUESTS) == alone


class _Layer(nn.Module):
    def __init__(self, c: ModelConfig, window: int | None) -> None:
        super().__init__()
        self.norm = RMSNorm(c.hidden_size, eps=1e-5)
        self.attention = Attention(c.hidden_size, heads=4, kv_heads=2, head_dim=12, rope=c.rope, window=window)
        self.mlp_norm = RMSNorm(c.hidden_size, eps=1e-5)
        self.mlp = GatedMLP(c.hidden_size, 80, act="silu")

    def forward(self, x: torch.Tensor, step: Step) -> torch.Tensor:
        x = x + self.attention(self.norm(x), step)
        return x + self.mlp(self.mlp_norm(x))


class Windowed(CausalLM):
    """Every other layer sees twenty tokens back only: two cache groups."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.embed = Embedding(c.vocab_size, c.hidden_size)
        self.layers = LayerStack(c.num_hidden_layers, lambda index: _Layer(c, 20 if index % 2 else None))
        self.norm = RMSNorm(c.hidden_size, eps=1e-5)
        self.head = Head(c.hidden_size, c.vocab_size)


class _WindowedPlugin:
    @hookimpl
    def bestiary_register_models(self, register: Any) -> None:
        register(
            Model(
                name="windowed",
                architectures=("WindowedForCausalLM",),
                config="bestiary.spec:ModelConfig",
                model="windowed_model:Windowed",
                weights={},
            )
        )


@pytest.fixture
def windowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    import json
    import sys

    monkeypatch.setitem(sys.modules, "windowed_model", sys.modules[__name__])
    config = {**SMALL, "architectures": ["WindowedForCausalLM"], "rope_theta": 10000.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    yield tmp_path


def test_two_cache_groups_together_as_alone_and_as_the_reference(windowed: Path) -> None:
    def make(**options: Any) -> LLM:
        return LLM(
            windowed,
            weights="random",
            tokenizer=None,
            device="cpu",
            plugins=[_WindowedPlugin()],
            kv_cache_memory=2**22,
            max_num_tokens=32,
            **options,
        )

    requests = [(prompt[:100], min(count, 20)) for prompt, count in REQUESTS[:8]]
    with make(prefix_caching=False) as llm:
        assert [group.window for group in llm.engine.cache_groups] == [None, 20]
        alone = [_generate(llm, [request])[0] for request in requests]
    with make() as llm:
        assert _generate(llm, requests) == alone
        assert _generate(llm, requests) == alone
    with make(reference=True) as llm:
        assert _generate(llm, requests) == alone
