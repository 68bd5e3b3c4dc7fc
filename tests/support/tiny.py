"""Tiny random Hugging Face Llamas, and engines of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bestiary.converters.convert import convert
from bestiary.core.engine.build import build
from bestiary.core.engine.load import LoadedEngine, load_engine
from bestiary.core.engine.options import BuildOptions
from bestiary.core.plugins import PluginHost
from bestiary.core.runtime.batch import Batch, Segment
from bestiary.core.runtime.request import Request
from bestiary.core.sampling_params import SamplingParams

SMALL = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

#: One configuration for each way in which Llamas differ.
CONFIGS: dict[str, dict[str, Any]] = {
    "gqa": {},
    "mha": {"num_key_value_heads": 4},
    "mqa": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "biased": {"attention_bias": True, "mlp_bias": True},
    "odd_head_dim": {"head_dim": 22},
    "rope_linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    "rope_dynamic": {
        "max_position_embeddings": 32,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    },
    "rope_llama3": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    },
    "rope_yarn": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "original_max_position_embeddings": 64,
        }
    },
}


def make_hf(directory: Path, **changes: Any) -> Any:
    """Save a random transformers Llama under ``directory`` and return it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**SMALL, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms of 1 and biases of 0 would hide that they are not applied
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(directory)
    return model


def make_engine(directory: Path, host: PluginHost, options: BuildOptions | None = None, **changes: Any) -> Any:
    """Make a model at ``directory/hf``, convert it to ``ckpt`` and build ``engine``; the transformers model."""
    model = make_hf(directory / "hf", **changes)
    convert(directory / "hf", directory / "ckpt", host=host)
    small = options or BuildOptions(device="cpu", max_batch_size=4, max_num_tokens=64)
    build(directory / "ckpt", directory / "engine", host=host, options=small)
    return model


def load(directory: Path, host: PluginHost, **options: Any) -> LoadedEngine:
    """Load ``directory/engine`` with a small cache."""
    return load_engine(directory / "engine", host=host, **{"kv_cache_memory": 2**24, **options})


def request(tokens: list[int], *blocks: list[int], prompt_length: int | None = None) -> Request:
    """A request outside of any scheduler, with the blocks given for each cache group."""
    made = Request("r", tokens[: prompt_length or len(tokens)], params(max_tokens=1), max_seq_len=4096)
    made.tokens = list(tokens)
    made.blocks = [list(of_group) for of_group in blocks]
    return made


def params(**said: Any) -> Any:
    """Resolved greedy parameters."""
    return SamplingParams(**{"temperature": 0.0, **said}).resolve(vocab_size=SMALL["vocab_size"])


def whole(made: Request) -> Batch:
    """All of a request's tokens in one step, with logits for each."""
    return Batch((Segment(made, 0, len(made.tokens), range(len(made.tokens))),))
