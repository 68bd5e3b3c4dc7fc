"""Planted mistakes: each is named, with the place, the op and what the error looks like."""

from __future__ import annotations

from typing import Any

import pytest

from bestiary.core.diff.open import Request
from bestiary.core.diff.run import Result, Texts, diff
from bestiary.core.plugins import PluginHost
from bestiary.core.progress import Silent


def compared(families, name: str, *, dtype: str = "float32", plugins=(), against=None, **said: Any) -> Result:
    source, engine = families(name, dtype)
    host = PluginHost.load(plugins=["planted", *plugins])
    request = Request(str(engine), against or str(source), said)
    return diff(request, Texts(tokens=20, seed=3), host=host, progress=Silent())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["right", "windowed"])
def test_a_right_model_is_within_tolerance(families, name, dtype):
    result = compared(families, name, dtype=dtype)
    assert result.verdict.blame == "nothing", result.verdict.text
    assert max(row.excess for row in result.comparison.rows) < 0.5
    assert len(result.comparison.rows) > 15 and result.comparison.rows[-1].name == "head"


#: Family → the first place, what the error looks like, and where to look.
MODELS = {
    "wrong_eps": ("layers.0.attention_norm", "rms_norm makes with eps=1e-05 (the call has 1e-06)", "config.py"),
    "no_bias": ("layers.0.attention.q", "the bias is missing", "config.py"),
    "wide_window": ("layers.0.attention.o.input", "makes with window=6 (the call has 7)", "config.py"),
    "wrong_act": ("layers.0.mlp.down.input", "makes with kind='silu' (the call has 'gelu')", "config.py"),
    "normless": ("layers.0.mlp.gate.input", "layers.0.mlp_norm, which is not applied", "model.py"),
    "halved": ("layers.0.mlp.gate.input", "the digits of bfloat16 only", "model.py"),
    "exchanged": ("layers.0.attention.rope.0", "it is the reference's layers.0.attention.rope.1", "convert.py"),
    "gate_up": ("layers.0.mlp.down.input", "with gate and up exchanged", "convert.py"),
    "norms": ("layers.0.attention_norm", "modules are exchanged", "convert.py"),
    "pairs": ("layers.0.attention.rope.0", "pairs where ours has halves", "convert.py"),
    "theta": ("layers.0.attention.rope.0", "rope makes with theta=10000 (the model has 500000)", "config.py"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_models_mistake(families, name):
    place, looks, part = MODELS[name]
    result = compared(families, name)
    assert result.comparison.first is not None and result.comparison.first.name == place
    assert any(looks in text for text in result.verdict.findings), result.verdict.findings
    assert result.verdict.blame == "plugin" and part in str(result.verdict.part)
    assert result.verdict.distribution == "planted unversioned" and place in result.verdict.text
    assert not any(outcome.gone for outcome in result.outcomes)


#: Kernel → its op, the first place, and what the error looks like.
KERNELS = {
    "other_eps": ("rms_norm", "layers.0.attention_norm", "ours is what rms_norm makes with eps=0.0001"),
    "narrow": ("rms_norm", "layers.0.attention_norm", "the digits of bfloat16 only"),
    "unwritten": ("rms_norm", "layers.0.attention_norm", "all of it is zero"),
    "not_a_number": ("rms_norm", "layers.0.attention_norm", "numbers are NaN"),
    "one_row": ("linear", "layers.0.attention.q", "wrong in decodes only"),
    "neighbours": ("rope_kv_write", "layers.0.attention.rope.0", "ours is made of turned pairs of neighbours"),
    "no_window": (
        "paged_attention",
        "layers.0.attention.o.input",
        "ours is what paged_attention makes with window=None",
    ),
}


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernels_mistake(families, name):
    op, place, looks = KERNELS[name]
    result = compared(families, "windowed" if name == "no_window" else "right", kernels={op: f"wrong_{name}"})
    assert result.comparison.first is not None and result.comparison.first.name == place
    assert any(looks in text for text in result.verdict.findings), result.verdict.findings
    assert result.verdict.blame == "kernel"
    assert result.verdict.text.startswith(f"kernel {op}=wrong_{name} of planted unversioned")
    assert result.verdict.text.endswith("in decodes only") == (name == "one_row")
    gone = {str(outcome.variant) for outcome in result.outcomes if outcome.gone}
    assert {f"--kernel {op}=reference", "all references, no fusion"} <= gone


def test_a_kernels_mistake_in_16_bit(families):
    result = compared(families, "right", dtype="bfloat16", kernels={"linear": "wrong_one_row"})
    # One per cent is less than a rounding may do to a product of 16-bit numbers; it is what no one can tell from rounding.
    assert result.verdict.blame == "nothing"
    result = compared(families, "right", dtype="bfloat16", kernels={"rms_norm": "wrong_unwritten"})
    assert result.verdict.text.startswith("kernel rms_norm=wrong_unwritten")


def test_a_fusion_that_drops_a_term(families):
    result = compared(families, "right", plugins=["planted_fusion"])
    assert result.comparison.first is not None and result.comparison.first.name == "layers.0.mlp"
    assert result.verdict.text == (
        "kernel planted::gated_down=without_up of planted_fusion unversioned, which the fusion gated_product puts in"
    )
    gone = {str(outcome.variant) for outcome in result.outcomes if outcome.gone}
    assert "without the fusion gated_product" in gone and "without the fusion residual_norm" not in gone


def test_against_its_own_references_a_models_mistake_is_none(families):
    assert compared(families, "wrong_eps", against="reference").verdict.blame == "nothing"
    result = compared(families, "right", against="reference", kernels={"rms_norm": "wrong_other_eps"})
    assert result.verdict.text.startswith("kernel rms_norm=wrong_other_eps")


def test_two_models_that_are_not_one(families):
    _, other = families("wrong_eps")
    result = compared(families, "right", against=str(other))
    assert result.verdict.blame == "models" and "layers.0.attention_norm (rms_norm, eps=1e-05)" in result.verdict.text


def test_rounding_is_told_from_mistakes(families):
    result = compared(families, "large", dtype="float16")
    assert result.comparison.first is not None and result.comparison.first.name == "layers.0.mlp.up"
    assert result.verdict.text == "rounding: in float32 it is gone"
    assert "numbers are infinite or NaN" in result.verdict.findings[0]
    assert compared(families, "large", dtype="bfloat16").verdict.blame == "nothing"
