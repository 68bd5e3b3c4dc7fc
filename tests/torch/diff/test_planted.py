"""Planted mistakes: each is named, with the place, the op and what the error looks like."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bestiary.core.diff import failures
from bestiary.core.diff.bisect import Outcome, Variant
from bestiary.core.diff.open import Request
from bestiary.core.diff.run import Result, Texts, diff
from bestiary.core.diff.text import bisection
from bestiary.core.engine.build import unmeasured
from bestiary.core.engine.options import BuildOptions
from bestiary.core.errors import PluginError
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
    "keys_values": (
        "layers.0.attention.cache.k",
        "what rope makes of layers.0.attention.v, ours of another: weights are exchanged",
        "convert.py",
    ),
    "no_residual": (
        "layers.0.mlp_norm",
        "layers.0.mlp_norm.input and layers.0.attention.o are one tensor here and two in the reference",
        "model.py",
    ),
    "parallel": (
        "layers.0.mlp_norm",
        "layers.0.attention_norm.input and layers.0.mlp_norm.input are one tensor here and two in the reference",
        "model.py",
    ),
    "unturned": (
        "layers.0.attention.cache.k",
        "it is the reference's layers.0.attention.k, which ours is, too: what is done with it differs",
        "model.py",
    ),
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
    if part == "model.py":
        assert not any("exchanged" in text for text in result.verdict.findings)


def test_a_fusion_is_not_to_blame_where_without_it_the_mistake_shows_earlier(families):
    result = compared(families, "keys_values")
    (without,) = [one for one in result.outcomes if str(one.variant) == "without the fusion rotary_cache"]
    assert without.excess is not None and without.excess <= 1
    assert without.first == "layers.0.attention.rope.1" and without.earlier and not without.gone
    assert ("without the fusion rotary_cache", "0", "earlier", without.first) in bisection(result)


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


#: Kernel that raises → its op, the nearest tensor that transformers has and that an engine has, and how it is told.
RAISING = {
    "raising": (
        "rms_norm",
        "layers.0.attention_norm",
        "layers.0.attention_norm",
        ": it raises RuntimeError: no such device thing in layers.0.attention_norm; ",
    ),
    "many_rows": (
        "linear",
        "layers.0.attention.q",
        "layers.0.attention.q",
        ", in decodes only: it raises ValueError: one row is unsupported in layers.0.attention.q; ",
    ),
    "no_angles": (
        "rotary_table",
        "layers.0.attention.rope.0",
        "layers.0.attention.rotary_table",
        ": it raises OSError: no table in layers.0.attention, on the way to layers.0.attention.ro",
    ),
    "no_sum": (
        "add_rms_norm",
        "layers.0.mlp_norm.input",
        "layers.0.add.0",
        ", which the fusion residual_norm puts in: it raises KeyError: 'y' in ",
    ),
}


@pytest.mark.parametrize("against", ["hf", "reference", "engine"])
@pytest.mark.parametrize("name", RAISING)
def test_a_kernel_that_raises(families, name, against):
    op, theirs, ours, told = RAISING[name]
    other = str(families("right")[1]) if against == "engine" else None if against == "hf" else against
    result = compared(families, "right", against=other, kernels={op: f"wrong_{name}"})
    assert result.verdict.blame == "kernel" and result.verdict.distribution == "planted unversioned"
    assert result.verdict.text.startswith(f"kernel {op}=wrong_{name} of planted unversioned{told}")
    assert result.verdict.text.endswith(f"; with --kernel {op}=reference it runs")
    (failure,) = result.failures
    assert failure.place == (theirs if against == "hf" else ours)
    assert (failure.by.op, failure.by.kernel) == (op, f"wrong_{name}")
    ran = {str(outcome.variant) for outcome in failure.outcomes if outcome.gone}
    assert {f"--kernel {op}=reference", "all references, no fusion"} <= ran
    assert ("without the fusion residual_norm" in ran) == (name == "no_sum")
    assert len(result.comparison.rows) > 15 and result.comparison.first is None, (
        "the table is of what runs in its place"
    )


def test_beside_a_kernel_that_raises_another_mistake_is_named(families):
    result = compared(families, "right", kernels={"rms_norm": "wrong_raising", "linear": "wrong_one_row"})
    assert result.verdict.text.startswith(
        "kernel rms_norm=wrong_raising of planted unversioned: it raises RuntimeError"
    )
    assert "; and then, kernel linear=wrong_one_row of planted unversioned, in decodes only" in result.verdict.text
    assert result.comparison.first is not None and result.comparison.first.name == "layers.0.attention.q"


def test_several_kernels_that_raise(families):
    kernels = {"rms_norm": "wrong_raising", "linear": "wrong_many_rows"}
    result = compared(families, "right", kernels=kernels)
    (failure,) = result.failures
    problems = {str(one.variant): one.problem for one in failure.outcomes}
    assert (
        problems["--kernel rms_norm=reference"]
        == "kernel linear=wrong_many_rows raised ValueError: one row is unsupported"
    )
    assert str(failure.instead) == "all references, no fusion" and result.comparison.first is None


def test_where_nothing_helps_the_call_is_named_and_nothing_is_compared(families, monkeypatch):
    """As on a GPU whose context a kernel ended."""

    def dead(ours: Any, variant: Variant, name: str, right: Any) -> Outcome:
        return Outcome(variant, None, problem="the device is lost")

    monkeypatch.setattr(failures, "attempt", dead)
    result = compared(families, "right", kernels={"rms_norm": "wrong_raising"})
    assert result.verdict.text == (
        "kernel rms_norm=wrong_raising of planted unversioned: it raises RuntimeError: no such device thing in "
        "layers.0.attention_norm; nothing that was changed makes it run"
    )
    assert result.comparison.rows == [] and len(result.failures) == 1


def test_a_kernel_of_the_other_side_that_raises_is_an_error_with_its_name(families, tmp_path):
    source, _ = families("right")
    other, host = tmp_path / "other.engine", PluginHost.load(plugins=["planted"])
    options = BuildOptions(device="cpu", dtype="float32", max_num_tokens=64, kernels={"rms_norm": "wrong_raising"})
    unmeasured(source.with_name("right.ckpt"), other, host=host, options=options)
    with pytest.raises(PluginError, match=r"engine other.*kernel rms_norm=wrong_raising: raised RuntimeError"):
        compared(families, "right", against=str(other))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_factor_is_told_from_rounding(families, dtype):
    result = compared(families, "right", dtype=dtype, kernels={"linear": "wrong_one_percent"})
    assert result.comparison.first is not None and result.comparison.first.name == "layers.0.attention.q"
    assert result.verdict.text.startswith("kernel linear=wrong_one_percent of planted unversioned")
    assert any(text.startswith("all of it is 1.0") for text in result.verdict.findings)
    assert not any("order" in text or "digits" in text for text in result.verdict.findings)
    reading = result.comparison.first.reading
    assert reading.scale.factor == pytest.approx(1.01, abs=1e-3)
    if dtype == "bfloat16":  # where the size of the error says nothing
        assert reading.off_scale and reading.allowed.excess(reading.own) < 1 < reading.excess
        assert result.verdict.text.endswith("; all of layers.0.attention.q is 1.01 times the reference")
        assert "in steps of many" not in result.verdict.text and "in decodes" not in result.verdict.text


def test_a_factor_in_decodes_only(families):
    result = compared(families, "right", dtype="bfloat16", kernels={"linear": "wrong_one_row"})
    assert result.verdict.text.startswith("kernel linear=wrong_one_row of planted unversioned, in decodes only; all of")
    result = compared(families, "right", dtype="bfloat16", kernels={"rms_norm": "wrong_unwritten"})
    assert result.verdict.text.startswith("kernel rms_norm=wrong_unwritten")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_kernel_that_works_in_its_input(families, dtype):
    result = compared(families, "right", dtype=dtype, kernels={"rms_norm": "wrong_clobber"})
    assert result.comparison.first is None, "what it changed was put back"
    assert (result.verdict.blame, result.verdict.distribution) == ("kernel", "planted unversioned")
    assert result.verdict.text == (
        "kernel rms_norm=wrong_clobber of planted unversioned: it changes its input x, 512 of 512 numbers in layers.0.attention_norm"
    )


def test_a_kernel_that_spoils_other_tokens_in_the_cache(families):
    result = compared(families, "right", kernels={"rope_kv_write": "wrong_spoiling"})
    assert result.verdict.blame == "kernel" and result.comparison.first is None
    assert result.verdict.text == (
        "kernel rope_kv_write=wrong_spoiling of planted unversioned, which the fusion rotary_cache puts in, in decodes only: "
        "it changes what v_cache holds of other tokens, 32 of 512 numbers in layers.0.attention"
    )
    (spoiler,) = result.comparison.spoilers
    assert spoiler.calls == 4 and spoiler.decodes_only


def test_beside_a_changed_input_another_mistake_is_named(families):
    result = compared(
        families, "right", kernels={"rms_norm": "wrong_clobber", "gated_activation": "torch", "linear": "wrong_one_row"}
    )
    assert result.verdict.text.startswith(
        "kernel rms_norm=wrong_clobber of planted unversioned: it changes its input x"
    )
    assert (
        "; and of layers.0.attention.q, kernel linear=wrong_one_row of planted unversioned, in decodes"
        in result.verdict.text
    )


def test_a_kernel_whose_result_has_no_name(families):
    result = compared(families, "right", kernels={"rotary_table": "wrong_next_angles"})
    assert result.comparison.first is not None and result.comparison.first.name == "layers.0.attention.rope.0"
    assert result.verdict.text == "kernel rotary_table=wrong_next_angles of planted unversioned"
    assert result.verdict.distribution == "planted unversioned" and result.made_by != result.verdict.distribution


def test_a_fusion_that_drops_a_term(families):
    result = compared(families, "right", plugins=["planted_fusion"])
    assert result.comparison.first is not None and result.comparison.first.name == "layers.0.mlp"
    assert result.verdict.text == (
        "kernel planted::gated_down=without_up of planted_fusion unversioned, which the fusion gated_product puts in"
    )
    gone = {str(outcome.variant) for outcome in result.outcomes if outcome.gone}
    assert "without the fusion gated_product" in gone and "without the fusion residual_norm" not in gone


def test_a_fusion_whose_op_drops_a_term(families):
    """Its kernel does as its reference does, so the fusion is to blame, and of all that are applied this one."""
    result = compared(families, "right", plugins=["planted_declaration"])
    assert result.comparison.first is not None and result.comparison.first.name == "layers.0.mlp"
    assert result.verdict.text == "fusion short_product of planted_declaration unversioned"
    assert (result.verdict.blame, result.verdict.distribution) == ("fusion", "planted_declaration unversioned")
    tried = [str(one.variant) for one in result.outcomes if one.variant.kind == "fusion"]
    assert tried[0] == "without the fusion short_product" and len(tried) == 3


def test_against_its_own_references_a_models_mistake_is_none(families):
    assert compared(families, "wrong_eps", against="reference").verdict.blame == "nothing"
    result = compared(families, "right", against="reference", kernels={"rms_norm": "wrong_other_eps"})
    assert result.verdict.text.startswith("kernel rms_norm=wrong_other_eps")


def test_two_models_that_are_not_one(families):
    _, other = families("wrong_eps")
    result = compared(families, "right", against=str(other))
    assert result.verdict.blame == "models" and "layers.0.attention_norm (rms_norm, eps=1e-05)" in result.verdict.text
    assert "is another checkpoint than ours: its model is planted_wrong_eps, ours planted_right" in result.verdict.text


def changed(source: Path, target: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]) -> Path:
    """A copy of a Hugging Face directory with another config or other weights."""
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    weights = load_file(target / "model.safetensors")
    change(config, weights)
    (target / "config.json").write_text(json.dumps(config))
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_two_checkpoints_are_no_mistake_of_the_plugin(families, tmp_path):
    source, _ = families("right")
    weights = changed(source, tmp_path / "tuned", lambda config, tensors: tensors["model.norm.weight"].mul_(1.5))
    result = compared(families, "right", against=str(weights))
    assert result.verdict.blame == "models" and result.verdict.distribution is None
    assert (
        "tuned is another checkpoint than ours: 1 of 12 tensors of weights differ, the first is norm.weight"
        in result.verdict.text
    )
    config = changed(source, tmp_path / "eps", lambda config, tensors: config.update(rms_norm_eps=1e-3))
    result = compared(families, "right", against=str(config))
    assert "its rms_norm_eps is 0.001, ours 1e-05" in result.verdict.text and result.verdict.blame == "models"


def test_a_copy_in_other_files_is_the_same_source(families, tmp_path):
    """What differs is then the plugin's mistake all the same."""
    source, _ = families("wrong_eps")
    copy = changed(source, tmp_path / "copy", lambda config, tensors: config.update(transformers_version="0"))
    result = compared(families, "wrong_eps", against=str(copy))
    assert result.verdict.blame == "plugin" and "look in its config.py" in result.verdict.text


def test_rounding_is_told_from_mistakes(families):
    result = compared(families, "large", dtype="float16")
    assert result.comparison.first is not None and result.comparison.first.name == "layers.0.mlp.up"
    assert result.verdict.text == "rounding: in float32 it is gone"
    assert "numbers are infinite or NaN" in result.verdict.findings[0]
    assert compared(families, "large", dtype="bfloat16").verdict.blame == "nothing"
