"""LlamaConfig: what it takes from config.json, and what it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bestiary import ConfigError
from bestiary_llama.config import LlamaConfig

BASE = {
    "vocab_size": 32,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def parse(**values: Any) -> LlamaConfig:
    return LlamaConfig.parse({**BASE, **values})


@pytest.mark.parametrize(
    ("values", "head", "kv_heads"),
    [
        ({}, 16, 4),
        ({"head_dim": None}, 16, 4),
        ({"head_dim": 24}, 24, 4),
        ({"num_key_value_heads": 1}, 16, 1),
        ({"num_attention_heads": 6, "head_dim": 10}, 10, 6),
    ],
)
def test_heads(values: dict[str, Any], head: int, kv_heads: int) -> None:
    config = parse(**values)
    assert (config.head, config.num_key_value_heads) == (head, kv_heads)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_attention_heads": 5}, r"num_attention_heads: does not divide hidden_size: 64 = 12 \* 5 \+ 4"),
        ({"num_key_value_heads": 3}, r"num_key_value_heads: does not divide num_attention_heads: 4 = 1 \* 3 \+ 1"),
        ({"num_key_value_heads": 8}, "num_key_value_heads"),
        ({"num_key_value_heads": 0}, "num_key_value_heads"),
        ({"head_dim": 7}, "head_dim: is odd"),
        ({"hidden_size": 20}, r"head_dim: is odd.*5 = hidden_size / num_attention_heads = 20 / 4"),
        ({"hidden_act": "gelu"}, "hidden_act: changes the mathematics"),
        ({"sliding_window": 4096}, "sliding_window: changes the mathematics"),
        ({"pretraining_tp": 2}, "pretraining_tp: changes the mathematics"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"attention_bias": "yes"}, "attention_bias"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"intermediate_size": 96.0}, "intermediate_size"),
    ],
)
def test_refusals_name_the_field(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(**values)


def test_what_transformers_writes_leaves_nothing_over() -> None:
    from transformers import LlamaConfig as Theirs

    raw = json.loads(Theirs(**BASE, rope_theta=5e5).to_json_string())
    config = LlamaConfig.parse(raw)
    assert config.rope.theta == 5e5 and config.ignored_keys == ()
