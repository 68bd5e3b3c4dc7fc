"""On a CUDA device: engines are within tolerance of transformers, and planted mistakes are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import planted
import pytest
import torch
from tiny import make_hf

from bestiary.converters.convert import convert
from bestiary.core.diff.open import Request
from bestiary.core.diff.run import Result, Texts, diff
from bestiary.core.engine.build import unmeasured
from bestiary.core.engine.options import BuildOptions
from bestiary.core.plugins import PluginHost
from bestiary.core.progress import Silent

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_within_tolerance(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BESTIARY_HOME", str(tmp_path / "home"))
    make_hf(tmp_path / "hf", hidden_size=256, num_attention_heads=8, intermediate_size=640)
    request = Request(str(tmp_path / "hf"), said={"device": "cuda", "dtype": dtype})
    result = diff(request, Texts(tokens=100), host=PluginHost.load(), progress=Silent())
    assert result.device == "cuda:0" and result.verdict.blame == "nothing", result.verdict.text


def compared(folder: Path, name: str, dtype: str = "float32", **said: Any) -> Result:
    host = PluginHost.load(plugins=["planted"])
    source = planted.write(name, folder)
    convert(source, folder / "ckpt", host=host)
    options = BuildOptions(device="cuda", max_batch_size=4, max_num_tokens=64, dtype=dtype)
    unmeasured(folder / "ckpt", folder / "engine", host=host, options=options)
    request = Request(str(folder / "engine"), str(source), said)
    return diff(request, Texts(tokens=20, seed=3), host=host, progress=Silent())


@pytest.mark.parametrize("name", ["wrong_eps", "no_bias", "wide_window", "exchanged", "pairs", "theta"])
def test_a_models_mistake(name: str, tmp_path: Path) -> None:
    result = compared(tmp_path, name)
    assert result.verdict.blame == "plugin" and result.verdict.findings, result.verdict.text


@pytest.mark.parametrize(
    ("op", "name"), [("rms_norm", "other_eps"), ("linear", "one_row"), ("rope_kv_write", "neighbours")]
)
def test_a_kernels_mistake(op: str, name: str, tmp_path: Path) -> None:
    result = compared(tmp_path, "right", kernels={op: f"wrong_{name}"})
    assert result.verdict.text.startswith(f"kernel {op}=wrong_{name} of planted"), result.verdict.text


def test_rounding_is_told_from_mistakes(tmp_path: Path) -> None:
    assert compared(tmp_path, "large", dtype="float16").verdict.blame == "rounding"
