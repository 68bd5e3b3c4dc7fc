"""A build runs plugins' kernels in a process of their own first: one that crashes is not used, and the build goes on."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from tiny import make_hf

from bestiary import ConfigError
from bestiary.converters.convert import convert
from bestiary.core.engine.build import build
from bestiary.core.engine.load import load_engine
from bestiary.core.engine.options import BuildOptions
from bestiary.core.plugins import PluginHost

PLUGIN = '''
"""A kernel that takes its process with it, and one that is slow and right."""

import ctypes

from bestiary import Kernel, hookimpl, ops


@hookimpl
def bestiary_register_kernels(register):
    register(Kernel(op="rms_norm", name="crashes", run="crashing_kernels:norm"))
    register(Kernel(op="embedding", name="lives", run="crashing_kernels:embedding", pack="crashing_kernels:packed"))


def norm(x, weight, eps, *, out):
    ctypes.string_at(0)


def packed(constants):
    return {"weight": {"rows": constants["weight"]}}


def embedding(ids, weight, *, out):
    print("noise")
    out.copy_(ops.embedding.reference(ids, weight["rows"]))
'''
OPTIONS = BuildOptions(device="cpu", max_batch_size=2, max_num_tokens=8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("probe")
    make_hf(directory / "hf", num_hidden_layers=1)
    convert(directory / "hf", directory / "ckpt", host=PluginHost.load())
    return directory / "ckpt"


def test_a_build_survives_a_kernel_that_crashes(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "crashing_kernels.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    host = PluginHost.load(plugins=["crashing_kernels"])
    with caplog.at_level(logging.WARNING, "bestiary.plan"):
        plan = build(checkpoint, tmp_path / "engine", host=host, options=OPTIONS).plan
    norms = [choice for name, choices in plan.choices.items() if name.startswith("rms_norm(") for choice in choices]
    assert norms and {choice.kernel for choice in norms} == {"torch"}
    refused = {trial.refused for choice in norms for trial in choice.trials if trial.kernel == "crashes"}
    assert refused == {"its trial run was killed by SIGSEGV"}
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(
        "kernel rms_norm=crashes (crashing_kernels unversioned) is not used, its trial run was killed"
    )
    assert "crashing_kernels.py" in line and "in norm" in line  # where Python was
    lookups = [choices for name, choices in plan.choices.items() if name.startswith("embedding(")]
    tried = {trial.kernel for choices in lookups for choice in choices for trial in choice.trials if trial.error == 0.0}
    assert tried == {"torch", "lives"}
    load_engine(tmp_path / "engine", host=host, kv_cache_memory=2**22)


@pytest.mark.slow
def test_a_kernel_that_crashes_can_not_be_demanded(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "crashing_kernels.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    host = PluginHost.load(plugins=["crashing_kernels"])
    options = BuildOptions(device="cpu", max_batch_size=2, max_num_tokens=8, kernels={"rms_norm": "crashes"})
    with pytest.raises(
        ConfigError, match=r"rms_norm=crashes: can't run this model's call: its trial run was killed by"
    ):
        build(checkpoint, tmp_path / "engine", host=host, options=options)
    assert not (tmp_path / "engine").exists()
