"""Layers of two kinds, two cache groups: requests together get what they get alone and what the reference gives."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SMALL
from torch import nn

from bestiary import LLM, Model, SamplingParams, hookimpl
from bestiary.layers import Attention, CausalLM, Embedding, GatedMLP, Head, LayerStack, RMSNorm, Step
from bestiary.spec import ModelConfig

_random = random.Random(7)
REQUESTS = [
    ([_random.randrange(3, 96) for _ in range(_random.randint(1, 100))], _random.randint(1, 20)) for _ in range(8)
]


def _generate(llm: LLM, requests: list[tuple[list[int], int]]) -> list[list[int]]:
    prompts = [{"prompt_token_ids": prompt} for prompt, _ in requests]
    params = [SamplingParams(temperature=0, max_tokens=count, ignore_eos=True) for _, count in requests]
    return [list(answer.outputs[0].token_ids) for answer in llm.generate(prompts, params, use_tqdm=False)]


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
def windowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(sys.modules, "windowed_model", sys.modules[__name__])
    config = {**SMALL, "architectures": ["WindowedForCausalLM"], "rope_theta": 10000.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


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

    with make(prefix_caching=False) as llm:
        assert [group.window for group in llm.engine.cache_groups] == [None, 20]
        alone = [_generate(llm, [request])[0] for request in REQUESTS]
    with make() as llm:
        assert _generate(llm, REQUESTS) == alone
        assert _generate(llm, REQUESTS) == alone
    with make(reference=True) as llm:
        assert _generate(llm, REQUESTS) == alone
