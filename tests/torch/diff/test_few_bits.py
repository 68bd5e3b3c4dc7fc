"""KV caches of few bits: what they lose is named as theirs, and hides no mistake."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bestiary.core.cli.main import invoke
from bestiary.core.diff import few_bits, picture, text
from bestiary.core.diff.bisect import Suspects, Variant, plain_storage, variants
from bestiary.core.diff.measure import Allowance, Error
from bestiary.core.diff.open import Request
from bestiary.core.diff.report import DiffReport
from bestiary.core.diff.run import Result, Texts, diff
from bestiary.core.engine.build import unmeasured
from bestiary.core.engine.load import load_engine
from bestiary.core.engine.options import BuildOptions
from bestiary.core.plugins import PluginHost
from bestiary.core.progress import Silent
from bestiary.core.sides.engine_side import EngineSide

HOST = PluginHost.load(plugins=["planted"])


def compared(
    families, name: str, kind: str, *, dtype: str = "float32", against: str | None = None, **kernels: str
) -> Result:
    source, engine = families(name, dtype)
    request = Request(str(engine), against or str(source), {"kv_dtype": kind, "kernels": kernels})
    return diff(request, Texts(tokens=20, seed=3), host=HOST, progress=Silent())


def side(engine: Path, **options: str) -> EngineSide:
    return EngineSide(load_engine(engine, host=HOST, num_blocks=8, **options), "ours")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["int8", "int4", "fp8"])
@pytest.mark.parametrize("against", [None, "reference"])
def test_what_the_cache_loses_is_the_caches(families, kind, against):
    result = compared(families, "right", kind, against=against)
    assert result.verdict.blame == "cache" and result.verdict.distribution is None and result.verdict.findings == ()
    assert result.verdict.text == (
        f"the cache's {kind}, which loses more than rounding; no mistake: with the KV cache in float32 all tensors are within "
        f"tolerance, and the ops' references lose as much"
    )
    assert result.comparison.first is not None and result.comparison.first.name == "layers.0.attention.cache.k"
    assert "lose as much</h2>" in (html := picture.page(result).html()) and "with the KV cache in float32" in html
    plain, references = result.outcomes
    assert (str(plain.variant), plain.gone, plain.first) == ("KV cache in float32", True, None)
    assert (str(references.variant), references.gone) == ("all references, no fusion", False)


def test_exchanged_keys_and_values_are_not_the_fusions(families):
    result = compared(families, "keys_values", "int8")
    assert (result.verdict.blame, result.verdict.part) == ("plugin", "convert.py")
    assert result.comparison.first is not None and result.comparison.first.name == "layers.0.attention.cache.k"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits_are_not_blamed_for_four(families, dtype):
    result = compared(families, "right", "int4", dtype=dtype)
    assert result.verdict.text.startswith(
        "the cache's int4, which loses more than rounding; no mistake: with the KV cache in " + dtype
    )


@pytest.mark.parametrize(
    ("op", "kernel", "place"),
    [
        ("quantized_paged_attention", "wrong_warm", "layers.0.attention.o.input"),
        ("rope_quantized_kv_write", "wrong_loud_keys", "layers.0.attention.cache.k"),
    ],
)
def test_a_kernel_that_loses_more_than_the_cache_must_is_named(families, op, kernel, place):
    result = compared(families, "right", "int8", **{op: kernel})
    assert result.comparison.first is not None and result.comparison.first.name == place
    assert result.verdict.blame == "kernel" and result.verdict.text.startswith(
        f"kernel {op}={kernel} of planted unversioned"
    )
    assert "1.5 times" in result.few_bits
    assert {"KV cache in float32", f"--kernel {op}=reference"} <= {
        str(one.variant) for one in result.outcomes if one.gone
    }


def test_a_mistake_elsewhere_is_found_behind_the_cache(families):
    result = compared(families, "right", "int8", rms_norm="wrong_other_eps")
    assert result.verdict.text.startswith("kernel rms_norm=wrong_other_eps of planted unversioned")
    begins = "of ours with the KV cache in float32, in place of the cache's int8"
    assert result.few_bits.startswith(begins)
    assert begins in text.heading(result)[-1]
    assert DiffReport.of(result).few_bits == result.few_bits
    result = compared(families, "wrong_act", "int8")
    assert result.verdict.blame == "plugin" and "config.py" in str(result.verdict.part)
    assert result.comparison.first is not None and result.comparison.first.name == "layers.0.mlp.down.input"


def test_inputs_that_are_changed_are_named_beside_the_cache(families):
    result = compared(families, "right", "int8", rms_norm="wrong_clobber")
    assert result.verdict.blame == "kernel"
    assert "wrong_clobber of planted unversioned: it changes its input x" in result.verdict.text
    assert result.verdict.text.endswith("lose as much")


def test_what_cannot_be_tried_is_no_proof(families, monkeypatch):
    broken = Variant("reference", "", {"kernels": {"no such": "op"}})
    monkeypatch.setattr(few_bits, "all_references", lambda host: broken)
    result = compared(families, "right", "int8")
    assert "can't be told from mistakes" in result.few_bits and "no mistake" not in result.verdict.text
    assert result.verdict.blame == "cache" and "or what reads and writes them" in result.verdict.text


def test_another_dtype_keeps_the_cache(families):
    _, engine = families("right", "bfloat16")
    ours = side(engine, kv_dtype="int8")
    tries = variants(Suspects(ours, {}, HOST, plain_storage(ours, None, cache=True, weights=False)))
    assert [one.kind for one in tries][:1] == ["cache"] and tries[0].options == {"kv_dtype": "bfloat16"}
    (dtype,) = (one for one in tries if one.kind == "dtype")
    loaded = side(engine, **dtype.options)
    assert loaded.few_bits == "int8" and loaded.engine.network.geometry.dtype == torch.float32
    assert not any(one.kind == "cache" for one in variants(Suspects(side(engine), {}, HOST)))


def test_the_other_side_has_few_bits(families, tmp_path, capsys):
    _, engine = families("right")
    theirs, options = tmp_path / "theirs.engine", BuildOptions(device="cpu", max_batch_size=4, kv_dtype="int8")
    unmeasured(engine.parent / "right.ckpt", theirs, host=HOST, options=options)
    assert invoke(["-p", "planted", "diff", str(engine), "--against", str(theirs), "--tokens", "20", "--json"]) == 70
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"]["text"].startswith("the other side, whose cache is in int8, or its weights or config")
    assert found["few_bits"] is None
    assert found["ours"].endswith(", float32") and found["against"] == "engine theirs.engine, float32, KV cache int8"
    assert invoke(["-p", "planted", "diff", str(theirs), "--against", "reference", "--tokens", "20", "--json"]) == 70
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"]["blame"] == "cache"
    assert [one["kind"] for one in found["bisection"]] == ["cache", "reference"]


def test_where_both_sides_have_few_bits_neither_is_changed(families, tmp_path):
    _, engine = families("right")
    theirs, options = tmp_path / "theirs.engine", BuildOptions(device="cpu", max_batch_size=4, kv_dtype="int8")
    unmeasured(engine.parent / "right.ckpt", theirs, host=HOST, options=options)
    assert compared(families, "right", "int8", against=str(theirs)).verdict.blame == "nothing"
    result = compared(families, "right", "int8", against=str(theirs), rms_norm="wrong_other_eps")
    assert result.verdict.blame == "kernel" and result.few_bits == ""


def test_a_loss_is_allowed_one_and_a_half_times():
    lost = Error(largest=0.1, relative=0.2, cosine=1.0)
    rounding = Error(largest=1e-3, relative=1e-3, cosine=1.0)
    allowed = Allowance(2.0, 0.0, rounding, lost)
    assert allowed.relative == pytest.approx(0.302)
    assert allowed.excess(Error(0.152, 0.1, 1.0)) == pytest.approx(1.0)
    assert allowed.excess(Error(0.1, 0.302, 1.0)) == pytest.approx(1.0)
    assert replace(allowed, lost=None).excess(Error(0.1, 0.1, 1.0)) == pytest.approx(50)
