"""From what a caller names to a loaded engine and its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestiary.core.engine.options import AT_LOAD, BuildOptions
from bestiary.core.errors import ConfigError, UsageError
from bestiary.core.progress import Progress
from bestiary.core.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from bestiary.core.engine.load import LoadedEngine
    from bestiary.core.plugins import PluginHost


def open_engine(
    model: str | Path,
    *,
    host: PluginHost,
    said: Mapping[str, Any],
    weights: str,
    seed: int,
    kv_cache_memory: float | int,
    reference: bool,
    progress: Progress,
) -> LoadedEngine:
    """The engine of a model: loaded, after whatever conversion and build it needs, or with random weights.

    Args:
        said: the build options that the caller named.

    Raises:
        ConfigError: ``said`` contradicts an engine that is already built.
    """
    from bestiary.core.engine.engine import is_engine
    from bestiary.core.engine.load import load_engine, random_engine
    from bestiary.core.engine.network import check_options
    from bestiary.core.prepare import prepare

    if isinstance(seed, bool) or not isinstance(seed, int):
        raise UsageError("E-USE-SEED", "seed", "is not an integer", found=repr(seed)[:80], expected="an integer")
    options = BuildOptions(**said)
    for name in ("tensor_parallel", "pipeline_parallel"):
        if getattr(options, name) > 1:
            raise ConfigError(
                "E-ENGINE-RANKS",
                name,
                "one process runs one rank",
                found=str(getattr(options, name)),
                expected="1",
                hint="build such an engine with bestiary build, and load each rank's share with load_engine(place=…)",
            )
    if weights == "random":
        check_options(options, host)
        return random_engine(
            Path(model),
            host=host,
            options=options,
            seed=seed,
            kv_cache_memory=kv_cache_memory,
            reference=reference,
            progress=progress,
        )
    if weights != "auto":
        raise UsageError("E-USE-WEIGHTS", "weights", "unknown", found=repr(weights), expected='"auto" or "random"')
    if is_engine(Path(model)):
        check_built(Path(model), said)
    return load_engine(
        prepare(model, host=host, options=options, progress=progress),
        host=host,
        kv_cache_memory=kv_cache_memory,
        reference=reference,
        progress=progress,
        **{name: value for name, value in said.items() if name in AT_LOAD},
    )


def check_built(directory: Path, said: Mapping[str, Any]) -> None:
    """Refuse options that contradict an engine that is already built (ConfigError)."""
    from bestiary.core.engine.engine import EngineManifest

    fixed = {name: value for name, value in said.items() if name not in AT_LOAD}
    built = EngineManifest.read(directory).options.as_dict() if fixed else {}
    for name, value in fixed.items():
        if value != built[name]:
            raise ConfigError(
                "E-ENGINE-OPTION",
                name,
                f"engine {directory.name} was built with another value",
                found=repr(value),
                expected=repr(built[name]),
                hint="build another engine, or leave the option out",
            )


def open_tokenizer(choice: str | Path | None, model: Path) -> Tokenizer | None:
    """``"auto"`` is the model's own; None is none."""
    if choice is None:
        return None
    return Tokenizer.load(model if choice == "auto" else Path(choice))
