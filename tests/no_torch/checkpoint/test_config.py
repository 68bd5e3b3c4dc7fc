"""Every way a config.json can be wrong, and every spelling of rope that is right."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import pytest

from bestiary import ConfigError
from bestiary.spec import GroupedQueryConfig, ModelConfig, Rope

BASE: dict[str, Any] = {"vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 512}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


class Toy(ModelConfig):
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {"sliding_window": (None,)}

    eps: float = 1e-6
    bias: bool = False
    inner: int = 4


def parse(**values: Any) -> Toy:
    return Toy.parse({**BASE, **values})


@pytest.mark.parametrize(
    ("field", "value", "type_shown"),
    [
        ("hidden_size", 0, "int"),
        ("hidden_size", -1, "int"),
        ("hidden_size", 10**18, "int"),
        ("hidden_size", 1e18, "float"),
        ("hidden_size", "4096", "str"),
        ("hidden_size", 4096.5, "float"),
        ("hidden_size", 4096.0, "float"),
        ("hidden_size", True, "bool"),
        ("hidden_size", None, "NoneType"),
        ("hidden_size", [64], "list"),
        ("num_hidden_layers", 10**9, "int"),
        ("inner", 10**15, "int"),
        ("eps", "1e-6", "str"),
        ("eps", True, "bool"),
        ("eps", float("nan"), "float"),
        ("eps", float("inf"), "float"),
        ("bias", 1, "int"),
        ("bias", "false", "str"),
        ("dtype", "float8", "str"),
        ("torch_dtype", 16, "int"),
    ],
)
def test_wrong_value_names_field_and_type(field: str, value: object, type_shown: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(**{field: value})
    assert field in error.value.subject
    assert error.value.found is not None and f"({type_shown})" in error.value.found
    assert error.value.exit_status == 78


def test_missing_field_is_named() -> None:
    with pytest.raises(ConfigError, match=r"field hidden_size: is missing"):
        Toy.parse({key: value for key, value in BASE.items() if key != "hidden_size"})


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"pretraining_tp": 2}, "pretraining_tp"),
        ({"sliding_window": 4096}, "sliding_window"),
        ({"sliding_window": False}, "sliding_window"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder"),
    ],
)
def test_keys_that_change_the_mathematics_are_refused(values: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=f"field {field}: changes the mathematics"):
        parse(**values)


def test_quantization_is_refused_by_its_method() -> None:
    with pytest.raises(ConfigError, match=r"quantization_config.*'awq'"):
        parse(quantization_config={"quant_method": "awq", "bits": 4})


def test_unknown_keys_are_listed_and_neutral_ones_are_not() -> None:
    config = parse(auto_map={"AutoModel": "x.Y"}, surprise=1, pretraining_tp=1, use_cache=True, sliding_window=None)
    assert config.ignored_keys == ("auto_map", "surprise")


def test_null_means_the_default() -> None:
    assert parse(eps=None, bias=None).eps == 1e-6


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("value", ["bfloat16", "torch.bfloat16"])
def test_dtype_is_folded(key: str, value: str) -> None:
    assert parse(**{key: value}).dtype == "bfloat16"


def test_contradicting_dtypes_are_refused() -> None:
    with pytest.raises(ConfigError, match="dtype and torch_dtype"):
        parse(dtype="bfloat16", torch_dtype="float16")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, Rope()),
        ({"rope_theta": 5e5}, Rope(theta=5e5)),
        ({"rope_scaling": None, "rope_theta": 1000}, Rope(theta=1000.0)),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, Rope(theta=5e5)),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, Rope(kind="linear", factor=2.0)),
        ({"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 2}}, Rope(kind="linear", factor=2.0)),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            Rope(kind="dynamic", factor=2.0, original_max_position=512),
        ),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 99}},
            Rope(kind="dynamic", factor=2.0, original_max_position=512),
        ),
        (
            {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 256}, "rope_theta": 5e5},
            Rope(
                kind="llama3",
                theta=5e5,
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position=256,
            ),
        ),
        (
            {"rope_scaling": LLAMA3},
            Rope(kind="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=512),
        ),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, Rope(kind="yarn", factor=4.0, original_max_position=512)),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0}, "original_max_position_embeddings": 128},
            Rope(kind="yarn", factor=4.0, original_max_position=128),
        ),
        (
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "rope_theta": 1e6,
                    "factor": 4.0,
                    "original_max_position_embeddings": 128,
                    "beta_fast": 0,
                    "beta_slow": 2,
                    "mscale": 1.0,
                    "mscale_all_dim": 0.5,
                    "attention_factor": 1.5,
                    "truncate": False,
                }
            },
            Rope(
                kind="yarn",
                theta=1e6,
                factor=4.0,
                original_max_position=128,
                beta_slow=2.0,
                mscale=1.0,
                mscale_all_dim=0.5,
                attention_factor=1.5,
                truncate=False,
            ),
        ),
        (
            {
                "rope_scaling": {"type": "linear", "factor": 2.0},
                "rope_parameters": {"rope_type": "linear", "rope_theta": 7.0},
            },
            Rope(kind="linear", theta=7.0, factor=2.0),
        ),
        ({"partial_rotary_factor": 0.5}, Rope(partial_rotary_factor=0.5)),
    ],
)
def test_rope_in_every_spelling(values: dict[str, Any], expected: Rope) -> None:
    config = parse(**values)
    assert config.rope == expected
    assert config.ignored_keys == ()


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "rope_scaling.rope_type"),
        ({"rope_scaling": {"type": "su", "factor": 2.0}}, "rope_scaling.type"),
        ({"rope_scaling": {"factor": 2.0}}, "rope_scaling.rope_type"),
        ({"rope_scaling": {"type": 3, "factor": 2.0}}, "rope_scaling.type"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor"),
        ({"rope_scaling": {"type": "linear", "factor": None}}, "rope_scaling.factor"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "rope_scaling.factor"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "rope_scaling.factor"),
        ({"rope_scaling": {"type": "linear", "factor": True}}, "rope_scaling.factor"),
        ({"rope_scaling": {"type": "linear", "factor": -1.0}}, "rope_scaling.factor"),
        ({"rope_scaling": "linear"}, "rope_scaling"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope_parameters.full_attention"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "high_freq_factor": 4.0}},
            "rope_scaling.low_freq_factor",
        ),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "rope_scaling.high_freq_factor"),
        (
            {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 0}},
            "rope_scaling.original_max_position_embeddings",
        ),
        ({"rope_theta": 0}, "rope_theta"),
        ({"rope_theta": "10000"}, "rope_theta"),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 2e4}}, "rope_theta and rope_parameters.rope_theta"),
        (
            {"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2.0}},
            "rope_scaling.type and rope_scaling.rope_type",
        ),
        (
            {
                "rope_scaling": {"type": "linear", "factor": 2.0},
                "rope_parameters": {"rope_type": "linear", "factor": 4.0},
            },
            "rope_scaling.factor and rope_parameters.factor",
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_theta": 1e4}},
            "rope_scaling and rope_parameters",
        ),
    ],
)
def test_wrong_rope_names_its_field(values: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(**values)
    assert error.value.subject.split(" ", 2)[2] == field


@pytest.mark.parametrize(
    ("head", "factor", "arithmetic"),
    [
        (12, 0.75, "12 * 0.75 = 9.0"),
        (12, 0.3, "12 * 0.3 = 3.5999999999999996"),
        (12, 0.05, "12 * 0.05 = 0.6000000000000001"),
        (64, 0.51, "64 * 0.51 = 32.64"),
        (16, 0.75, None),
        (128, 0.25, None),
        (80, 0.4, None),
        (100, 0.14, None),  # 14.000000000000002
    ],
)
def test_a_rotated_part_that_is_no_pairs_is_refused_with_its_arithmetic(
    head: int, factor: float, arithmetic: str | None
) -> None:
    raw = {**BASE, "num_attention_heads": 4, "head_dim": head, "rope_parameters": {"partial_rotary_factor": factor}}
    if arithmetic is None:
        assert GroupedQueryConfig.parse(raw).rope.rotated(head) == round(head * factor)
        return
    with pytest.raises(ConfigError, match=rf"partial_rotary_factor: .*{re.escape(arithmetic)}") as error:
        GroupedQueryConfig.parse(raw)
    assert error.value.code == "E-CFG-ARITHMETIC"


def test_ropes_are_hashable() -> None:
    assert len({parse().rope, parse().rope, parse(rope_theta=7.0).rope}) == 2


def test_what_changes_the_mathematics_of_some_family_is_refused_unless_it_is_a_field() -> None:
    class Capped(ModelConfig):
        attn_logit_softcapping: float | None = None

    raw = {"vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "attn_logit_softcapping": 30.0}
    assert Capped.parse(raw).attn_logit_softcapping == 30.0
    with pytest.raises(ConfigError, match=r"field attn_logit_softcapping.*expected null"):
        ModelConfig.parse(raw)
    with pytest.raises(ConfigError, match=r"field layer_types"):
        Capped.parse({**raw, "layer_types": ["sliding_attention"]})
