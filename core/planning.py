"""What a model will take of memory, from headers and configs: nothing is converted, built or loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
    from bestiary.core.engine.network import Network
    from bestiary.core.plugins import PluginHost
    from bestiary.core.quant.choose import Methods
    from bestiary.spec import Model


@dataclass(frozen=True)
class Known:
    """What headers and configs say.

    Args:
        stored: the dtype of each tensor that can be used where it lies in a file that there is or would be.
        methods: by quantized parameter.
    """

    model: Model
    config: ModelConfig
    dtype: str
    stored: Mapping[str, str]
    options: BuildOptions
    methods: Methods


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

    known = known_of(model, host, said, progress or Silent())
    plans = []
    for network in networks(known, host):
        held, there = process_memory(network)
        longest = known.config.max_length
        planner = MemoryPlanner(network, known.options, host, stored=known.stored, longest=longest, held=held)
        plans.append(planner.plan(there if memory is None else memory))
    return max(plans, key=lambda plan: plan.shares.total)


def networks(known: Known, host: PluginHost) -> Iterator[Network]:
    """The program of each pipeline stage's first rank; the others' look the same."""
    from bestiary.core.engine.network import make_network
    from bestiary.core.ops.collective import Place, Ranks

    options = known.options
    for stage in range(options.pipeline_parallel):
        place = Place(Ranks(0, options.tensor_parallel), Ranks(stage, options.pipeline_parallel))
        yield make_network(
            known.model,
            known.config,
            options,
            checkpoint_dtype=known.dtype,
            host=host,
            place=place,
            methods=known.methods,
        )


def known_of(model: str | Path, host: PluginHost, said: Mapping[str, Any], progress: Progress) -> Known:
    """What a model's headers and configs say, and the options of its engine.

    Raises:
        ConfigError: the options don't fit an engine that is built.
        MissingInputError, DataError: the model is absent or damaged.
    """
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

    found = foresee(path, host)
    return _quantized(Known(found.model, found.config, found.dtype, found.stored, options, {}), host)


def _of_engine(path: Path, host: PluginHost, said: Mapping[str, Any]) -> Known:
    from bestiary.core.checkpoint.parameters import parse_config
    from bestiary.core.checkpoint.weights import Weights
    from bestiary.core.engine.engine import EngineManifest
    from bestiary.core.engine.load import methods_of
    from bestiary.core.engine.memory import mapped_dtypes

    check_built(path, said)
    manifest = EngineManifest.read(path)
    model = host.model(manifest.checkpoint.model)
    config = parse_config(model, manifest.checkpoint.config)
    methods = methods_of(manifest, said.get("quantization"), model, config, host)
    stored = {name: dtype for name, dtype in mapped_dtypes(Weights.open(path)).items() if name not in methods}
    return Known(model, config, manifest.checkpoint.dtype, stored, replace(manifest.options, **said), methods)


def _of_checkpoint(path: Path, host: PluginHost, options: BuildOptions) -> Known:
    from bestiary.converters.quantize import already_quantized
    from bestiary.core.checkpoint.checkpoint import Checkpoint
    from bestiary.core.checkpoint.parameters import parse_config
    from bestiary.core.engine.memory import mapped_dtypes
    from bestiary.core.quant.choose import methods_in

    opened = Checkpoint.open(path)
    manifest = opened.manifest
    model = host.model(manifest.model)
    config = parse_config(model, manifest.config)
    methods = {name: one.method for name, one in methods_in(manifest.quantization, host).items()}
    if manifest.quantization and options.quantization is not None:
        raise already_quantized(manifest, path.name)
    return _quantized(Known(model, config, manifest.dtype, mapped_dtypes(opened.weights), options, methods), host)


def _of_config(path: Path, host: PluginHost, options: BuildOptions) -> Known:
    """A config.json alone: the weights are taken to be of the dtype it names."""
    from bestiary.core.checkpoint.parameters import parameters
    from bestiary.core.engine.family import config_of, family_of

    model, config = family_of(config_of(path), host)
    dtype = config.dtype or "float32"
    stored = dict.fromkeys(parameters(model, config).shapes, dtype)
    return _quantized(Known(model, config, dtype, stored, options, {}), host)


def _quantized(known: Known, host: PluginHost) -> Known:
    """With the weights quantized that the options name, as a build writes them."""
    from bestiary.core.checkpoint.parameters import parameters
    from bestiary.core.quant.choose import chosen
    from bestiary.core.quant.tensors import stored_name

    if known.options.quantization is None:
        return known
    methods = chosen(known.options.quantization, known.model, known.config, host)
    shapes = parameters(known.model, known.config).shapes
    stored = {name: dtype for name, dtype in known.stored.items() if name not in methods}
    for name, method in methods.items():
        stored |= {stored_name(name, part): one.dtype for part, one in method.layout(shapes[name]).items()}
    return replace(known, stored=stored, methods=methods)
