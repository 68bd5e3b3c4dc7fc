"""The configs of the family: what they take from config.json, and what they refuse."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bestiary import ConfigError
from bestiary_mistral.config import BaseConfig
from bestiary_mistral.ministral.config import MinistralConfig
from bestiary_mistral.mistral.config import MistralConfig
from bestiary_mistral.mixtral.config import MixtralConfig

BASE = {
    "vocab_size": 32,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
FULL, SLIDING = "full_attention", "sliding_attention"


@pytest.mark.parametrize(
    ("kind", "said", "window"),
    [
        (MistralConfig, {}, 4096),
        (MistralConfig, {"sliding_window": None}, None),
        (MistralConfig, {"sliding_window": 7}, 7),
        (MinistralConfig, {}, 4096),
        (MixtralConfig, {}, None),
        (MixtralConfig, {"sliding_window": 7}, 7),
    ],
)
def test_a_window_that_is_not_said_is_that_of_transformers(
    kind: type[BaseConfig], said: dict[str, Any], window: int | None
) -> None:
    assert kind.parse({**BASE, **said}).sliding_window == window


@pytest.mark.parametrize(("kind", "theta"), [(MistralConfig, 1e4), (MinistralConfig, 1e4), (MixtralConfig, 1e6)])
def test_a_theta_that_is_not_said_is_that_of_transformers(kind: type[BaseConfig], theta: float) -> None:
    assert kind.parse(BASE).rope.theta == theta


def test_layers_have_the_window_of_their_kind() -> None:
    config = MinistralConfig.parse({**BASE, "sliding_window": 8, "layer_types": [FULL, SLIDING]})
    assert [config.window(layer) for layer in range(2)] == [None, 8]
    assert MinistralConfig.parse({**BASE, "sliding_window": 8}).window(0) == 8
    assert MinistralConfig.parse({**BASE, "sliding_window": None}).window(0) is None


def test_keys_and_values_for_every_head_where_their_number_is_null() -> None:
    assert MistralConfig.parse({**BASE, "num_key_value_heads": None}).num_key_value_heads == 4
    assert MistralConfig.parse(BASE).head == 16
    assert MixtralConfig.parse({**BASE, "head_dim": None}).rope.theta == 1e6


@pytest.mark.parametrize(
    ("kind", "said", "message"),
    [
        (
            MistralConfig,
            {"num_attention_heads": 5},
            r"num_attention_heads: does not divide hidden_size: 64 = 12 \* 5 \+ 4",
        ),
        (MistralConfig, {"num_key_value_heads": 3}, "num_key_value_heads: does not divide num_attention_heads"),
        (MistralConfig, {"head_dim": 7}, "head_dim: is odd"),
        (MistralConfig, {"sliding_window": 0}, "sliding_window"),
        (MistralConfig, {"sliding_window": -1}, "sliding_window"),
        (MistralConfig, {"attention_bias": True}, "attention_bias: changes the mathematics"),
        (MistralConfig, {"layer_types": [FULL, SLIDING]}, "layer_types: changes the mathematics"),
        (MistralConfig, {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        (MinistralConfig, {"layer_types": [FULL]}, r"layer_types: has 1 entries for num_hidden_layers = 2"),
        (MinistralConfig, {"layer_types": [FULL, "chunked_attention"]}, "layer_types"),
        (MinistralConfig, {"layer_types": [FULL, SLIDING], "sliding_window": None}, "gives layer 1 a window"),
        (MixtralConfig, {"num_experts_per_tok": 9}, "num_experts_per_tok: is 9, of num_local_experts = 8"),
        (MixtralConfig, {"num_local_experts": 10**9}, "num_local_experts"),
        (MixtralConfig, {"num_local_experts": 0}, "num_local_experts"),
    ],
)
def test_refusals_name_the_field(kind: type[BaseConfig], said: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kind.parse({**BASE, **said})


@pytest.mark.parametrize("name", ["Mistral", "Ministral", "Mixtral"])
def test_what_transformers_writes_is_understood(name: str) -> None:
    import transformers

    kind = {"Mistral": MistralConfig, "Ministral": MinistralConfig, "Mixtral": MixtralConfig}[name]
    raw = json.loads(getattr(transformers, f"{name}Config")(**BASE, rope_theta=5e5).to_json_string())
    config = kind.parse(raw)
    assert config.rope.theta == 5e5
    assert config.ignored_keys == ()
