"""From what a caller names to a loaded engine and its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bestiary.core.engine.options import AT_LOAD, BuildOptions
from bestiary.core.errors import ConfigError, UsageError, shown
from bestiary.core.progress import Progress
from bestiary.core.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from bestiary.core.engine.facts import EngineFacts
    from bestiary.core.engine.load import LoadedEngine
    from bestiary.core.plugins import PluginHost
    from bestiary.core.runtime.executor import Executor


class OpenEngine(NamedTuple):
    """An engine that is ready to run: where its files are, what it is, what runs it, and, in this process, the engine itself."""

    directory: Path
    facts: EngineFacts
    executor: Executor
    engine: LoadedEngine | None


def open_engine(
    model: str | Path,
    *,
    host: PluginHost,
    said: Mapping[str, Any],
    weights: str,
    seed: int,
    kv_cache_memory: float | int,
    memory_limit: int | None,
    reference: bool,
    progress: Progress,
    start_timeout: float | None = None,
) -> OpenEngine:
    """The engine of a model: loaded, after whatever conversion and build it needs, or with random weights.

    Args:
        said: the build options that the caller named.
        start_timeout: seconds that the ranks of a divided engine have to load; None for no limit.

    Raises:
        ConfigError: ``said`` contradicts an engine that is already built, or ``kv_cache_memory`` is no size.
    """
    from bestiary.core.engine.engine import EngineManifest, is_engine
    from bestiary.core.engine.facts import EngineFacts
    from bestiary.core.engine.load import load_engine
    from bestiary.core.engine.memory_cap import check_memory
    from bestiary.core.engine.start import in_process, in_ranks
    from bestiary.core.prepare import prepare

    if isinstance(seed, bool) or not isinstance(seed, int):
        raise UsageError("E-USE-SEED", "seed", "is not an integer", found=repr(seed)[:80], expected="an integer")
    if weights not in ("auto", "random"):
        raise UsageError("E-USE-WEIGHTS", "weights", "unknown", found=repr(weights), expected='"auto" or "random"')
    check_memory(kv_cache_memory)
    memory: dict[str, Any] = {"kv_cache_memory": kv_cache_memory, "memory_limit": memory_limit, "reference": reference}
    if weights == "random":
        engine = _random(Path(model), host, BuildOptions(**said), seed, progress, memory)
        return OpenEngine(engine.directory, EngineFacts.of(engine), in_process(engine, host), engine)
    if is_engine(Path(model)):
        check_built(Path(model), said)
    directory = prepare(model, host=host, options=BuildOptions(**said), progress=progress)
    changes = {name: value for name, value in said.items() if name in AT_LOAD}
    manifest = EngineManifest.read(directory)
    built = manifest.options
    if built.tensor_parallel * built.pipeline_parallel > 1:
        manifest.check_lock(host)  # the ranks only load what this process does
        executor, facts = in_ranks(
            directory,
            host,
            tensor=built.tensor_parallel,
            stages=built.pipeline_parallel,
            device=changes.pop("device", built.device),
            options={**memory, **changes},
            start_timeout=start_timeout,
        )
        return OpenEngine(directory, facts, executor, None)
    engine = load_engine(directory, host=host, progress=progress, **memory, **changes)
    return OpenEngine(directory, EngineFacts.of(engine), in_process(engine, host), engine)


def _random(
    model: Path, host: PluginHost, options: BuildOptions, seed: int, progress: Progress, memory: Mapping[str, Any]
) -> LoadedEngine:
    from bestiary.core.engine.load import random_engine
    from bestiary.core.engine.network import check_options

    for name in ("tensor_parallel", "pipeline_parallel"):
        if getattr(options, name) > 1:
            raise ConfigError(
                "E-ENGINE-RANKS",
                name,
                "random weights are made in one process",
                found=str(getattr(options, name)),
                expected="1",
                hint="build an engine with this degree, and load that",
            )
    check_options(options, host)
    return random_engine(model, host=host, options=options, seed=seed, progress=progress, **memory)


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


def open_tokenizer(choice: str | Path | None) -> Tokenizer | None:
    """The tokenizer of a directory that the caller named; None where it is the model's own (``"auto"``), or none is wanted.

    Raises:
        MissingInputError: the directory has none.
    """
    if choice is None or choice == "auto":
        return None
    check_name("tokenizer", choice)
    return Tokenizer.load(Path(choice))


def check_name(field: str, value: object) -> None:
    """Refuse what can't name a file or directory (UsageError)."""
    if not isinstance(value, str | Path):
        raise UsageError("E-USE-TYPE", field, "of the wrong type", found=shown(value), expected="a path or a name")
