"""Engines of small models that the fallback runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from unported_models import save

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


@pytest.fixture(scope="session")
def host() -> Any:
    """Of this plugin alone: another may bring one of the architectures some day."""
    from bestiary.core.plugins import PluginHost

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BESTIARY_PLUGINS", "")
        return PluginHost.load(plugins=["bestiary_transformers.plugin"])


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, host: Any) -> Callable[[str], tuple[Path, Any]]:
    """A directory with ``hf``, ``ckpt`` and ``engine`` of a model_type, and transformers' model; made once each."""
    from bestiary.converters.convert import convert
    from bestiary.core.engine.build import build
    from bestiary.core.engine.options import BuildOptions

    known: dict[str, tuple[Path, Any]] = {}

    def of(name: str) -> tuple[Path, Any]:
        if name not in known:
            directory = tmp_path_factory.mktemp(name)
            model = save(directory, name)
            convert(directory / "hf", directory / "ckpt", host=host)
            options = BuildOptions(device="cpu", max_batch_size=4, max_num_tokens=64, block_size=8)
            build(directory / "ckpt", directory / "engine", host=host, options=options)
            known[name] = directory, model
        return known[name]

    return of
