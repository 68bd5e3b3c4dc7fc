"""A tiny Llama on disk, written tensor by tensor, and ways to spoil it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from bestiary.core.plugins import PluginHost

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "eos_token_id": [2, 3],
}


def tensors(dtype: torch.dtype = torch.float32, *, tied: bool = False) -> dict[str, torch.Tensor]:
    """All tensors of ``CONFIG``, random."""
    generator = torch.Generator().manual_seed(0)

    def new(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    found = {"model.embed_tokens.weight": new(32, 16), "model.norm.weight": new(16)}
    for layer in (f"model.layers.{index}" for index in range(2)):
        found |= {
            f"{layer}.input_layernorm.weight": new(16),
            f"{layer}.self_attn.q_proj.weight": new(16, 16),
            f"{layer}.self_attn.k_proj.weight": new(8, 16),
            f"{layer}.self_attn.v_proj.weight": new(8, 16),
            f"{layer}.self_attn.o_proj.weight": new(16, 16),
            f"{layer}.post_attention_layernorm.weight": new(16),
            f"{layer}.mlp.gate_proj.weight": new(24, 16),
            f"{layer}.mlp.up_proj.weight": new(24, 16),
            f"{layer}.mlp.down_proj.weight": new(16, 24),
        }
    return found if tied else {**found, "lm_head.weight": new(32, 16)}


def write(directory: Path, config: Mapping[str, Any], weights: Mapping[str, torch.Tensor], shards: int = 1) -> Path:
    """A Hugging Face directory, with an index when there are several shards."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(dict(weights), directory / "model.safetensors", {"format": "pt"})
        return directory
    places = {}
    for number in range(shards):
        name = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {key: weights[key] for key in list(weights)[number::shards]}
        save_file(part, directory / name, {"format": "pt"})
        places |= dict.fromkeys(part, name)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return directory


@pytest.fixture(scope="session")
def host() -> PluginHost:
    return PluginHost.load()


@pytest.fixture
def llama(tmp_path: Path) -> Callable[..., Path]:
    """Write the tiny Llama: ``llama(dtype=…, shards=…, tied=…, weights={…}, **config)``."""

    def make(
        *,
        dtype: torch.dtype = torch.float32,
        shards: int = 1,
        tied: bool = False,
        weights: Mapping[str, torch.Tensor] | None = None,
        **config: Any,
    ) -> Path:
        values = {**CONFIG, "tie_word_embeddings": tied, **config}
        return write(tmp_path / "source", values, {**tensors(dtype, tied=tied), **(weights or {})}, shards)

    return make
