"""A Hugging Face directory of any model, for tools that run transformers beside an engine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bestiary.core.home import Home
from bestiary.core.progress import Progress, Silent
from bestiary.core.source import Kind, fetch, recognise

if TYPE_CHECKING:
    from bestiary.core.plugins import PluginHost


@contextmanager
def hf_directory(model: str | Path, *, host: PluginHost, progress: Progress | None = None) -> Iterator[Path]:
    """The model as transformers reads it: itself where it is a Hugging Face directory or hub id; else its checkpoint, exported
    into a folder of the cache that is removed at the end. An export has the weights bit for bit, in the checkpoint's dtype.

    Args:
        model: HF directory, GGUF file, hub id, checkpoint or engine.

    Raises:
        BestiaryError: there is no such model, or it can't be exported.
    """
    reports = progress or Silent()
    source = recognise(model, host)
    if source.kind == "hub":
        yield fetch(str(model), reports)
    elif source.kind == "source" and source.path is not None and (source.path / "config.json").is_file():
        yield source.path
    else:
        home = Home()
        home.root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="hf-", dir=home.root) as folder:
            assert source.path is not None
            yield exported(source.kind, source.path, Path(folder), host, reports)


def exported(kind: Kind, path: Path, folder: Path, host: PluginHost, progress: Progress) -> Path:
    """An export of an engine, a checkpoint or a foreign file, below ``folder``, which also gets what is made on the way.

    Quantized weights are restored, so that whoever reads the directory computes with the same ones.
    """
    from bestiary.converters.export import export
    from bestiary.core.prepare import converted

    if kind == "engine":
        path = _checkpoint_in(path, folder / "checkpoint")
    elif kind == "source":
        path = converted(path, host=host, progress=progress)
    export(path, folder / "hf", host=host, dequantize=True, progress=progress)
    return folder / "hf"


def _checkpoint_in(engine: Path, target: Path) -> Path:
    """An engine holds its checkpoint's files under their names, and the manifest within engine.json."""
    from bestiary.core.engine.build import link_or_copy
    from bestiary.core.engine.engine import EngineManifest

    manifest = EngineManifest.read(engine).checkpoint
    target.mkdir()
    for name in manifest.files:
        link_or_copy(engine / name, target / name)
    manifest.write(target)
    return target
