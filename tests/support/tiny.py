"""Tiny random Hugging Face Llamas, and engines of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bestiary.converters.convert import convert
from bestiary.core.engine.build import build
from bestiary.core.engine.load import LoadedEngine, load_engine
from bestiary.core.engine.options import BuildOptions
from bestiary.core.plugins import PluginHost
from bestiary.core.resolve_params import resolve
from bestiary.core.runtime.messages import EMPTY, Opened, StepMessage, TableChanges
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


def params(**said: Any) -> Any:
    """Resolved greedy parameters."""
    return resolve(SamplingParams(**{"temperature": 0.0, **said}), vocab_size=SMALL["vocab_size"])


def opened(slot: int, tokens: Sequence[int], *, stored: int = 0, **said: Any) -> Opened:
    """A request outside of any scheduler takes a slot."""
    return Opened(slot, stored, len(tokens), np.array(tokens, np.int32), params(**{"max_tokens": 1, **said}))


def step(
    *chunks: tuple[int, Sequence[int]],
    decodes: Sequence[int] = (),
    new: Sequence[Opened] = (),
    blocks: Mapping[int, Sequence[Sequence[int]]] | None = None,
    rows: Sequence[int] | None = None,
) -> StepMessage:
    """A step: the last tokens of some slots, then chunks of (slot, tokens); ``blocks`` are slots' tables by group."""
    tables = blocks or {}
    groups = max((len(of_slot) for of_slot in tables.values()), default=0)
    changes = []
    for group in range(groups):
        placed = [(slot, place, block) for slot, t in tables.items() for place, block in enumerate(t[group])]
        slots, places, ids = np.array(placed, np.int32).reshape(-1, 3).T
        changes.append(TableChanges(slots, places, ids, EMPTY, EMPTY, EMPTY))
    ids = [token for _, tokens in chunks for token in tokens]
    return StepMessage(
        1,
        np.array([*decodes, *(slot for slot, _ in chunks)], np.int32),
        np.array([1] * len(decodes) + [len(tokens) for _, tokens in chunks], np.int32),
        len(decodes),
        np.array(ids, np.int32),
        None if rows is None else np.array(rows, np.int32),
        tuple(new),
        tuple(changes),
        0,
    )


def whole(tokens: Sequence[int], *blocks: Sequence[int], prompt_length: int | None = None) -> StepMessage:
    """All tokens of a request in one step, in the blocks given for each cache group, with logits for each."""
    fresh = opened(0, tokens)
    if prompt_length is not None:
        fresh = replace(fresh, prompt_length=prompt_length)
    return step((0, tokens), new=[fresh], blocks={0: blocks}, rows=range(len(tokens)))


def logits(engine: LoadedEngine, message: StepMessage) -> Tensor:
    """Of a step's rows."""
    return engine.runner.forward(message)["logits"]
