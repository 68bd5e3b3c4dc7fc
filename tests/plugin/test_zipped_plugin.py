"""A plugin that is imported from an archive works like any other, up to its place in the cache."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from tiny import make_hf

from bestiary.core.engine.options import BuildOptions
from bestiary.core.plugins import PluginHost
from bestiary.core.prepare import prepare

PLUGIN = """
import torch
from bestiary import Kernel, hookimpl


@hookimpl
def bestiary_register_kernels(register):
    register(Kernel(op="add", name="zipped", run="zipped_plugin.kernels:add"))
"""
KERNELS = """
import torch


def add(x, y, *, out):
    torch.add(x, y, out=out)
"""


@pytest.mark.parametrize("package", [True, False], ids=["package", "module"])
def test_an_engine_is_made_with_a_plugin_in_an_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: bool
) -> None:
    module = f"zipped_{'package' if package else 'module'}"
    archive = tmp_path / "plugins.zip"

    def write(comment: str = "") -> None:
        with zipfile.ZipFile(archive, "w") as file:
            source = PLUGIN.replace("zipped_plugin.kernels", f"{module}.kernels" if package else f"{module}_kernels")
            file.writestr(f"{module}/__init__.py" if package else f"{module}.py", source + comment)
            file.writestr(f"{module}/kernels.py" if package else f"{module}_kernels.py", KERNELS)

    write()
    monkeypatch.syspath_prepend(archive)
    monkeypatch.setenv("BESTIARY_HOME", str(tmp_path / "home"))
    make_hf(tmp_path / "hf", num_hidden_layers=1)
    host = PluginHost.load(plugins=[module])
    options = BuildOptions(device="cpu", max_batch_size=2, max_num_tokens=8)
    engine = prepare(tmp_path / "hf", host=host, options=options)
    assert prepare(tmp_path / "hf", host=host, options=options) == engine
    write("# another\n")
    assert prepare(tmp_path / "hf", host=host, options=options) != engine, "the archive has changed"
