"""Experts that a source keeps one by one are stacked without more copies than the memory contract allows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from bestiary.converters.convert import convert
from bestiary.core.device import peak_allocation
from bestiary.core.plugins import PluginHost


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_stacking_experts_takes_no_more_than_twice_the_stack(dtype: str, tmp_path: Path) -> None:
    host = PluginHost.load()
    config = MixtralConfig(
        vocab_size=48, hidden_size=64, intermediate_size=512, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, num_local_experts=32, sliding_window=None,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(tmp_path / "hf")
    stack = 32 * 512 * 64 * (4 if dtype == "auto" else 2)
    run = lambda: convert(tmp_path / "hf", tmp_path / "ckpt", host=host, dtype=dtype) and None  # noqa: E731
    took = peak_allocation(run, torch.device("cpu"))
    assert stack <= took <= 2 * stack + 2**20
