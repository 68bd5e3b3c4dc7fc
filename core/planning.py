"""What a model will take of memory, from headers and configs: nothing is converted, built or loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestiary.core.engine.options import BuildOptions
from bestiary.core.opening import check_built
from bestiary.core.progress import Progress, Silent
from bestiary.core.source import fetch, recognise

if TYPE_CHECKING:
    from bestiary.core.config import ModelConfig
    from bestiary.core.engine.memory import MemoryPlan
    from bestiary.core.plugins import PluginHost
    from bestiary.spec import Model


@dataclass(frozen=True)
class _Known:
    """What headers and configs say: ``stored`` is each parameter's dtype in the checkpoint that there is or would be."""

    model: Model
    config: ModelConfig
    dtype: str
    stored: Mapping[str, str]
    options: BuildOptions


def plan_memory(
    model: str | Path,
    *,
    host: PluginHost,
    said: Mapping[str, Any],
    memory: int | None = None,
    progress: Progress | None = None,
) -> MemoryPlan:
    """Plan the memory of an engine of MODEL; of a divided one, that of the rank that takes most.

    Args:
        model: a Hugging Face directory (its config.json is enough), a GGUF file, a hub id, a checkpoint or an engine.
        said: build options that the caller named.
        memory: bytes to fit into; None: what this process holds of the device and what is free.

    Raises:
        ConfigError: the options don't fit the model, or an engine was built with others.
        MissingInputError, DataError: the model is absent or damaged.
    """
    from bestiary.core.engine.memory import MemoryPlanner, process_memory
    from bestiary.core.engine.network import make_network
    from bestiary.core.ops.collective import Place, Ranks

    known = _known(model, host, said, progress or Silent())
    options = known.options
    plans = []
    for stage in range(options.pipeline_parallel):
        place = Place(Ranks(0, options.tensor_parallel), Ranks(stage, options.pipeline_parallel))
        network = make_network(known.model, known.config, options, checkpoint_dtype=known.dtype, host=host, place=place)
        held, there = process_memory(network)
        longest = known.config.max_length
        planner = MemoryPlanner(network, options, host, stored=known.stored, longest=longest, held=held)
        plans.append(planner.plan(there if memory is None else memory))
    return max(plans, key=lambda plan: plan.shares.total)


def _known(model: str | Path, host: PluginHost, said: Mapping[str, Any], progress: Progress) -> _Known:
    source = recognise(model, host)
    path = source.path or fetch(str(model), progress, files=("*.json",))
    if source.kind == "engine":
        return _of_engine(path, host, said)
    options = BuildOptions(**said)
    if source.kind == "checkpoint":
        return _of_checkpoint(path, host, options)
    if path.is_dir() and not any(path.glob("*.safetensors")):
        return _of_config(path, host, options)
    from bestiary.converters.convert import foresee

    family, config, stored, dtype = foresee(path, host)
    return _Known(family, config, dtype, stored, options)


def _of_engine(path: Path, host: PluginHost, said: Mapping[str, Any]) -> _Known:
    from bestiary.core.checkpoint.parameters import parse_config
    from bestiary.core.checkpoint.weights import Weights
    from bestiary.core.engine.engine import EngineManifest
    from bestiary.core.engine.memory import mapped_dtypes

    check_built(path, said)
    manifest = EngineManifest.read(path)
    model = host.model(manifest.checkpoint.model)
    config = parse_config(model, manifest.checkpoint.config)
    stored = mapped_dtypes(Weights.open(path))
    return _Known(model, config, manifest.checkpoint.dtype, stored, replace(manifest.options, **said))


def _of_checkpoint(path: Path, host: PluginHost, options: BuildOptions) -> _Known:
    from bestiary.core.checkpoint.checkpoint import Checkpoint
    from bestiary.core.checkpoint.parameters import parse_config
    from bestiary.core.engine.memory import mapped_dtypes

    opened = Checkpoint.open(path)
    model = host.model(opened.manifest.model)
    config = parse_config(model, opened.manifest.config)
    return _Known(model, config, opened.manifest.dtype, mapped_dtypes(opened.weights), options)


def _of_config(path: Path, host: PluginHost, options: BuildOptions) -> _Known:
    """A config.json alone: the weights are taken to be of the dtype it names."""
    from bestiary.core.checkpoint.parameters import parameters
    from bestiary.core.engine.family import config_of, family_of

    model, config = family_of(config_of(path), host)
    dtype = config.dtype or "float32"
    return _Known(model, config, dtype, dict.fromkeys(parameters(model, config).shapes, dtype), options)
