"""Planted families as Hugging Face directories, with engines that nobody measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import planted
import pytest

from bestiary.converters.convert import convert
from bestiary.core.engine.build import unmeasured
from bestiary.core.engine.options import BuildOptions
from bestiary.core.plugins import PluginHost


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Path]]:
    """``families(name, dtype)``: the source and the engine of a planted family."""
    folder, host = tmp_path_factory.mktemp("planted"), PluginHost.load(plugins=["planted"])

    def made(name: str, dtype: str = "float32") -> tuple[Path, Path]:
        source, checkpoint = folder / name, folder / f"{name}.ckpt"
        engine = folder / f"{name}.{dtype}.engine"
        if not source.exists():
            planted.write(name, folder, layers=1)  # what one layer shows, more would
            convert(source, checkpoint, host=host)
        if not engine.exists():
            options = BuildOptions(device="cpu", max_batch_size=4, max_num_tokens=64, dtype=dtype)
            unmeasured(checkpoint, engine, host=host, options=options)
        return source, engine

    return made
