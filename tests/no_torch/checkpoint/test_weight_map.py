"""The weight-map language on names and shapes: which source tensor goes where, and every error of coverage."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from bestiary import DataError
from bestiary.converters import SourceTensor, WeightMap, permute_rope, split, stack_experts, transpose
from bestiary.converters.plan import Plan, make_plan
from bestiary.core.checkpoint.parameters import Parameters
from bestiary.spec import ModelConfig

CONFIG = ModelConfig(vocab_size=10, hidden_size=8, num_hidden_layers=2)
L, M = "layers.{}", "model.layers.{}"
MAP = WeightMap(
    {
        "embed": ("wte", "embedding"),
        f"{L}.attention": split(f"{M}.qkv", into=("q", "k")),
        f"{L}.up": transpose(f"{M}.up"),
        f"{L}.experts": stack_experts(f"{M}.experts.{{}}.w1"),
        f"{L}.sinks": f"{M}.sinks",
        f"{L}.rope": permute_rope(f"{M}.rope", heads="hidden_size"),
        "head": "lm_head",
    },
    drop=(f"{M}.inv_freq", "junk"),
)
MODEL: dict[str, tuple[int, ...]] = {
    "embed.weight": (10, 8),
    "layers.0.attention.q.weight": (8, 8),
    "layers.0.attention.k.weight": (4, 8),
    "layers.1.up.weight": (6, 8),
    "layers.1.up.bias": (6,),
    "layers.1.experts.weight": (3, 5, 8),
    "layers.1.sinks": (4,),
}
SOURCE: dict[str, tuple[int, ...]] = {
    "wte.weight": (10, 8),
    "model.layers.0.qkv.weight": (12, 8),
    "model.layers.1.up.weight": (8, 6),
    "model.layers.1.up.bias": (6,),
    **{f"model.layers.1.experts.{expert}.w1.weight": (5, 8) for expert in range(3)},
    "model.layers.1.sinks": (4,),
}


def plan(
    source: Mapping[str, tuple[int, ...]] = SOURCE,
    model: Mapping[str, tuple[int, ...]] = MODEL,
    aliases: Mapping[str, str] | None = None,
) -> Plan:
    tensors = {name: SourceTensor(name, "float32", shape, "w.safetensors") for name, shape in source.items()}
    return make_plan(MAP, Parameters(dict(model), dict(aliases or {})), tensors, CONFIG)


def without(name: str) -> dict[str, tuple[int, ...]]:
    return {key: shape for key, shape in SOURCE.items() if key != name}


def test_every_operation_finds_its_sources() -> None:
    found = {transfer.targets: transfer.sources for transfer in plan().transfers}
    assert found == {
        ("embed.weight",): ("wte.weight",),
        ("layers.0.attention.q.weight", "layers.0.attention.k.weight"): ("model.layers.0.qkv.weight",),
        ("layers.1.up.weight",): ("model.layers.1.up.weight",),
        ("layers.1.up.bias",): ("model.layers.1.up.bias",),
        ("layers.1.experts.weight",): tuple(f"model.layers.1.experts.{expert}.w1.weight" for expert in range(3)),
        ("layers.1.sinks",): ("model.layers.1.sinks",),
    }


def test_the_second_alternative_serves_when_the_first_is_absent() -> None:
    source = {**without("wte.weight"), "embedding.weight": (10, 8)}
    assert plan(source).transfers[0].sources == ("embedding.weight",)


def test_dropped_tensors_are_reported() -> None:
    source = {**SOURCE, "model.layers.0.inv_freq": (4,), "junk.weight": (1,), "junk": (1,)}
    assert plan(source).dropped == ("model.layers.0.inv_freq", "junk.weight", "junk")


@pytest.mark.parametrize("name", list(SOURCE))
def test_a_missing_tensor_is_named(name: str) -> None:
    with pytest.raises(DataError, match="is missing, and parameter") as error:
        plan(without(name))
    assert name in str(error.value) and error.value.exit_status == 65


@pytest.mark.parametrize(
    "name",
    [
        "extra",
        "wte.bias",
        "model.layers.2.up.weight",
        "model.layers.0.inv_freq.x.y",
        "model.layers.x.up.weight",
        "lm_head.weight",
    ],
)
def test_an_unexpected_tensor_is_named(name: str) -> None:
    with pytest.raises(DataError, match="is used by no parameter") as error:
        plan({**SOURCE, name: (10, 8)})
    assert error.value.subject == f"w.safetensors, tensor {name}"


@pytest.mark.parametrize(
    ("name", "shape", "text"),
    [
        ("wte.weight", (11, 8), "found [11, 8], expected [10, 8] from vocab_size=10, hidden_size=8"),
        ("wte.weight", (8, 10), "it looks transposed"),
        ("wte.weight", (10, 8, 1), "found [10, 8, 1]"),
        ("model.layers.0.qkv.weight", (8, 8), "expected [12, 8]"),
        ("model.layers.1.up.weight", (6, 8), "it looks transposed"),
        ("model.layers.1.experts.2.w1.weight", (5, 9), "experts.2.w1.weight: has a wrong shape"),
        ("model.layers.1.sinks", (0,), "expected [4]"),
    ],
)
def test_a_wrong_shape_names_both_shapes(name: str, shape: tuple[int, ...], text: str) -> None:
    with pytest.raises(DataError) as error:
        plan({**SOURCE, name: shape})
    assert text in str(error.value) and name in error.value.subject


@pytest.mark.parametrize("parameter", ["norm.weight", "layers.0.attention.v.weight"])
def test_a_parameter_without_a_row_is_the_plugins_fault(parameter: str) -> None:
    with pytest.raises(DataError, match=f"parameter {parameter}: has no row"):
        plan(model={**MODEL, parameter: (1,)})


def test_half_of_a_split_is_refused() -> None:
    with pytest.raises(DataError, match="has no row"):
        plan(model={name: shape for name, shape in MODEL.items() if name != "layers.0.attention.k.weight"})


def test_a_tied_tensor_in_the_file_must_equal_the_one_it_is_tied_to() -> None:
    aliases = {"head.weight": "embed.weight"}
    assert plan(aliases=aliases).equal == ()
    assert plan({**SOURCE, "lm_head.weight": (10, 8)}, aliases=aliases).equal == (("lm_head.weight", "wte.weight"),)
