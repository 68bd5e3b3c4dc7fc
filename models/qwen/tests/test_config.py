"""The configs: what they take from config.json, and what they refuse."""

from __future__ import annotations

import json
from typing import Any

import pytest
import transformers

from bestiary import ConfigError
from bestiary_qwen.qwen2.config import Qwen2Config
from bestiary_qwen.qwen2_moe.config import Qwen2MoeConfig
from bestiary_qwen.qwen3.config import Qwen3Config
from bestiary_qwen.qwen3_moe.config import Qwen3MoeConfig

BASE: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SPARSE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
KEYS = {
    Qwen2Config: BASE,
    Qwen2MoeConfig: {**BASE, **SPARSE, "shared_expert_intermediate_size": 40},
    Qwen3Config: BASE,
    Qwen3MoeConfig: {**BASE, **SPARSE},
}
SLIDING = {"use_sliding_window": True, "sliding_window": 16}


def parse(kind: Any, **values: Any) -> Any:
    return kind.parse({**KEYS[kind], **values})


@pytest.mark.parametrize(
    ("kind", "values", "head", "kv_heads"),
    [
        (Qwen2Config, {}, 16, 2),
        (Qwen2Config, {"num_key_value_heads": None}, 16, 4),
        (Qwen2Config, {"head_dim": 24}, 24, 2),
        (Qwen2MoeConfig, {}, 16, 2),
        (Qwen3Config, {}, 128, 2),
        (Qwen3Config, {"head_dim": 32}, 32, 2),
        (Qwen3MoeConfig, {}, 16, 2),
        (Qwen3MoeConfig, {"head_dim": 32}, 32, 2),
    ],
)
def test_heads(kind: Any, values: dict[str, Any], head: int, kv_heads: int) -> None:
    config = parse(kind, **values)
    assert (config.head, config.num_key_value_heads) == (head, kv_heads)


@pytest.mark.parametrize(
    ("kind", "values", "windows"),
    [
        (Qwen2Config, {}, [None, None, None, None]),
        (Qwen2Config, {"sliding_window": 16, "max_window_layers": 0}, [None, None, None, None]),
        (Qwen2Config, {**SLIDING, "max_window_layers": 3}, [None, None, None, 16]),
        (Qwen2Config, SLIDING, [None, None, None, None]),
        (
            Qwen3Config,
            {**SLIDING, "max_window_layers": 0, "layer_types": ["sliding_attention", *["full_attention"] * 3]},
            [16, None, None, None],
        ),
        (Qwen3Config, {**SLIDING, "max_window_layers": 2}, [None, None, 16, 16]),
        (Qwen2MoeConfig, {"sliding_window": 0}, [None, None, None, None]),
        (Qwen2Config, {"use_sliding_window": True, "sliding_window": None}, [None, None, None, None]),
        (Qwen2MoeConfig, SLIDING, [16, None, 16, None]),
        (Qwen2MoeConfig, {**SLIDING, "max_window_layers": 2}, [16, None, None, None]),
        (Qwen3MoeConfig, {**SLIDING, "max_window_layers": 2}, [16, 16, 16, 16]),
        (Qwen3MoeConfig, {"sliding_window": 16}, [None, None, None, None]),
    ],
)
def test_windows_by_layer(kind: Any, values: dict[str, Any], windows: list[int | None]) -> None:
    config = parse(kind, **values)
    assert [config.window(layer) for layer in range(4)] == windows


@pytest.mark.parametrize("kind", [Qwen2Config, Qwen2MoeConfig, Qwen3Config])
@pytest.mark.parametrize("values", [{}, SLIDING, {**SLIDING, "max_window_layers": 2}])
def test_windows_are_those_of_transformers(kind: Any, values: dict[str, Any]) -> None:
    theirs = getattr(transformers, kind.__name__)(**KEYS[kind], **values)
    slides = [config == "sliding_attention" for config in theirs.layer_types]
    config = parse(kind, **values)
    assert [config.window(layer) is not None for layer in range(4)] == slides


@pytest.mark.parametrize(
    ("values", "sparse"),
    [
        ({}, [True, True, True, True]),
        ({"decoder_sparse_step": 2}, [False, True, False, True]),
        ({"mlp_only_layers": [0, 3]}, [False, True, True, False]),
        ({"decoder_sparse_step": 2, "mlp_only_layers": [1]}, [False, False, False, True]),
    ],
)
@pytest.mark.parametrize("kind", [Qwen2MoeConfig, Qwen3MoeConfig])
def test_layers_with_experts(kind: Any, values: dict[str, Any], sparse: list[bool]) -> None:
    config = parse(kind, **values)
    assert [config.sparse(layer) for layer in range(4)] == sparse


def test_either_name_of_the_number_of_experts() -> None:
    raw = {key: value for key, value in KEYS[Qwen3MoeConfig].items() if key != "num_experts"}
    assert Qwen3MoeConfig.parse({**raw, "num_local_experts": 8}).num_experts == 8
    assert parse(Qwen3MoeConfig, num_local_experts=8).num_experts == 8
    with pytest.raises(ConfigError, match=r"num_experts and num_local_experts: contradict.*8 and 4"):
        parse(Qwen3MoeConfig, num_local_experts=4)
    with pytest.raises(ConfigError, match="num_experts: is missing"):
        Qwen3MoeConfig.parse(raw)


def test_yarn_lengthens_a_context_that_the_file_states_without_it() -> None:
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert parse(Qwen2Config, max_position_embeddings=32768).max_length == 32768
    assert parse(Qwen2Config, max_position_embeddings=32768, rope_scaling=yarn).max_length == 131072
    assert parse(Qwen3Config, max_position_embeddings=40960, rope_scaling=yarn).max_length == 131072
    assert parse(Qwen3Config, max_position_embeddings=262144, rope_scaling=yarn).max_length == 262144
    linear = {"type": "linear", "factor": 2.0}
    assert parse(Qwen2Config, max_position_embeddings=64, rope_scaling=linear).max_length == 128


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (
            Qwen2Config,
            {"num_attention_heads": 5},
            r"num_attention_heads: does not divide hidden_size: 64 = 12 \* 5 \+ 4",
        ),
        (Qwen2Config, {"num_key_value_heads": 3}, r"num_key_value_heads: does not divide .*: 4 = 1 \* 3 \+ 1"),
        (Qwen2Config, {"hidden_size": 20}, r"head_dim: is odd.*5 = hidden_size / num_attention_heads = 20 / 4"),
        (Qwen2Config, {"hidden_act": "gelu"}, "hidden_act: changes the mathematics"),
        (Qwen2Config, {"use_mrope": True}, "use_mrope: changes the mathematics"),
        (Qwen2Config, {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        (Qwen2Config, {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary"),
        (Qwen2Config, {"rope_scaling": {"type": "mrope"}}, "rope_scaling.type: is no known kind of rope"),
        (Qwen2Config, {"use_sliding_window": True}, "sliding_window: is None, and use_sliding_window is true"),
        (Qwen2MoeConfig, {**SLIDING, "sliding_window": 0}, "sliding_window: is 0, and use_sliding_window is true"),
        (Qwen2Config, {**SLIDING, "sliding_window": -1}, "sliding_window"),
        (Qwen2Config, {"layer_types": ["full_attention"] * 3}, "layer_types: has 3 entries for .* = 4 layers"),
        (Qwen2Config, {"layer_types": ["chunked_attention"] * 4}, "layer_types.0"),
        (
            Qwen3Config,
            {"layer_types": ["full_attention", *["sliding_attention"] * 3]},
            "layer_types: gives layer 1 a window, and use_sliding_window is false",
        ),
        (Qwen3Config, {"head_dim": 7}, "head_dim: is odd, and rotary embedding turns pairs: 7"),
        (Qwen3Config, {"attention_bias": "yes"}, "attention_bias"),
        (Qwen3Config, {"dual_chunk_attention_config": {"chunk_size": 262144}}, "dual_chunk_attention_config: changes"),
        (Qwen2MoeConfig, {"num_experts_per_tok": 9}, "num_experts_per_tok: is 9, of num_experts = 8 experts"),
        (Qwen2MoeConfig, {"num_experts": 0}, "num_experts"),
        (Qwen2MoeConfig, {"decoder_sparse_step": 0}, "decoder_sparse_step"),
        (Qwen2MoeConfig, {"shared_expert_intermediate_size": None}, "shared_expert_intermediate_size"),
        (Qwen3MoeConfig, {"num_experts": 1 << 20}, "num_experts"),
        (Qwen3MoeConfig, {"layer_types": ["full_attention"] * 4}, "layer_types: changes the mathematics"),
        (Qwen3MoeConfig, {"mlp_only_layers": [1.5]}, "mlp_only_layers"),
    ],
)
def test_refusals_name_the_field(kind: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(kind, **values)


def test_unknown_keys_are_ignored_and_listed() -> None:
    assert parse(Qwen3Config, quantum_flux=3).ignored_keys == ("quantum_flux",)


@pytest.mark.parametrize("kind", KEYS)
def test_what_transformers_writes_leaves_nothing_over(kind: Any) -> None:
    raw = json.loads(getattr(transformers, kind.__name__)(**KEYS[kind]).to_json_string())
    assert kind.parse(raw).ignored_keys == ()
