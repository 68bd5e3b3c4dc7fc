"""Tiny random Hugging Face Llamas, and engines of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bestiary.converters.convert import convert
from bestiary.core.engine.build import build
from bestiary.core.engine.load import LoadedEngine, load_engine
from bestiary.core.engine.options import BuildOptions
from bestiary.core.engine.steps import logits, opened, step, whole
from bestiary.core.plugins import PluginHost
from bestiary_llama.conformance import SMALL, LlamaConformance

__all__ = ["CONFIGS", "SMALL", "load", "logits", "make_engine", "make_hf", "opened", "step", "whole"]

#: One configuration for each way in which Llamas differ.
CONFIGS = LlamaConformance.configs


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
