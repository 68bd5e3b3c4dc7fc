"""From what a caller names to a loaded engine and its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bestiary.core.errors import ConfigError, UsageError
from bestiary.core.progress import Progress
from bestiary.core.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from bestiary.core.engine.load import LoadedEngine
    from bestiary.core.engine.options import BuildOptions
    from bestiary.core.plugins import PluginHost


def check_quantization(host: PluginHost, name: str | None) -> None:
    """Refuse a method that no plugin provides, with those that are there (ConfigError)."""
    known = sorted(method.name for method in host.quantizations())
    if name is not None and name not in known:
        raise ConfigError(
            "E-CFG-QUANTIZATION",
            "quantization",
            "no plugin provides this method",
            found=repr(name),
            expected=f"one of {', '.join(known)}" if known else "none, as no installed plugin brings one",
        )


def open_engine(
    model: str | Path,
    *,
    host: PluginHost,
    options: BuildOptions,
    weights: str,
    seed: int,
    kv_cache_memory: float | int,
    progress: Progress,
) -> LoadedEngine:
    """The engine of a model: loaded, after whatever conversion and build it needs, or with random weights."""
    from bestiary.core.engine.load import load_engine, random_engine
    from bestiary.core.prepare import prepare

    if weights == "random":
        return random_engine(Path(model), host=host, options=options, seed=seed, kv_cache_memory=kv_cache_memory)
    if weights != "auto":
        raise UsageError("E-USE-WEIGHTS", "weights", "unknown", found=repr(weights), expected='"auto" or "random"')
    return load_engine(
        prepare(model, host=host, options=options, progress=progress),
        host=host,
        device=None if options.device == "auto" else options.device,
        kv_cache_memory=kv_cache_memory,
        kernels=options.kernels,
        progress=progress,
    )


def open_tokenizer(choice: str | Path | None, model: Path) -> Tokenizer | None:
    """``"auto"`` is the model's own; None is none."""
    if choice is None:
        return None
    return Tokenizer.load(model if choice == "auto" else Path(choice))
