"""Loading an engine: its plan bound to functions, its weights mapped, its caches allocated."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bestiary.core import device as devices
from bestiary.core.checkpoint.checkpoint import is_checkpoint
from bestiary.core.checkpoint.files import JSON_LIMIT, read_json
from bestiary.core.checkpoint.manifest import Manifest
from bestiary.core.checkpoint.parameters import check_names, parse_config
from bestiary.core.checkpoint.weights import Weights
from bestiary.core.config import ModelConfig, Rope
from bestiary.core.engine.constants import Constants, at_random, from_files
from bestiary.core.engine.engine import EngineManifest, is_engine, plan_file
from bestiary.core.engine.network import Network, make_network
from bestiary.core.engine.options import BuildOptions
from bestiary.core.errors import ConfigError
from bestiary.core.ops.collective import ALONE, Ranks
from bestiary.core.plugins import PluginHost
from bestiary.core.program.bind import bind
from bestiary.core.program.bound import StepProgram
from bestiary.core.program.plan import Plan
from bestiary.core.program.program import Program
from bestiary.core.program.trace import cache_groups
from bestiary.core.progress import Progress, Silent, step
from bestiary.core.runtime.cache_groups import CacheGroup
from bestiary.core.runtime.inputs import StepInputs
from bestiary.core.runtime.kv_store import KVStore, plan_groups
from bestiary.core.runtime.reference import ReferenceRunner
from bestiary.core.runtime.runner import Runner
from bestiary.spec import Model

log = logging.getLogger("bestiary.engine")


@dataclass(frozen=True)
class LoadedEngine:
    """An engine ready to run.

    Attributes:
        prefix_caching: whether equal prefixes have equal keys; not so where angles depend on the prompt's length.
    """

    runner: Runner | ReferenceRunner
    cache_groups: tuple[CacheGroup, ...]
    options: BuildOptions
    vocab_size: int
    max_seq_len: int
    directory: Path
    model_name: str
    prefix_caching: bool
    network: Network
    plan: Plan


def load_engine(
    directory: Path,
    *,
    host: PluginHost,
    device: str | None = None,
    kv_cache_memory: float | int = 0.9,
    num_blocks: int | None = None,
    kernels: Mapping[str, str] | None = None,
    max_batch_size: int | None = None,
    max_seq_len: int | None = None,
    ranks: Ranks = ALONE,
    taps: Sequence[str] = (),
    reference: bool = False,
    progress: Progress | None = None,
) -> LoadedEngine:
    """Load an engine directory.

    Args:
        device: where to run, if not where it was built for.
        kv_cache_memory: a fraction (at most 1) of the memory that is free once the weights are there, or bytes.
        num_blocks: blocks of each cache group, in place of ``kv_cache_memory``.
        kernels: op → kernel, over what the plan says.
        max_batch_size, max_seq_len: in place of the build's.
        ranks: this process's place in a tensor-parallel engine.
        taps: module paths whose outputs ``Runner.forward_all`` also returns.
        reference: run the model's own forward on the ops' references, without a step program.

    Raises:
        MissingInputError, DataError: the directory is no engine, or damaged.
        ConfigError: the options don't fit; in deterministic mode, an op has no batch-invariant kernel.
        PluginError: a plugin that is needed is missing.
    """
    manifest = EngineManifest.read(directory)
    changes: dict[str, Any] = {"device": device, "max_batch_size": max_batch_size, "max_seq_len": max_seq_len}
    options = replace(manifest.options, **{name: value for name, value in changes.items() if value is not None})
    options = replace(options, kernels={**options.kernels, **(kernels or {})})
    _check_ranks(options, ranks)
    model = host.model(manifest.checkpoint.model)
    check_names(model, manifest.checkpoint.model_format)
    config = parse_config(model, manifest.checkpoint.config)
    with step(progress or Silent(), "load") as note:
        network = make_network(
            model, config, options, checkpoint_dtype=manifest.checkpoint.dtype, host=host, ranks=ranks, taps=taps
        )
        _report_drift(manifest.lock, host.lock())
        plan = _plan(directory, network, options)
        constants = Constants(from_files(Weights.open(directory), network.target.dtype, network.target.device))
        groups = _groups(network, options, kv_cache_memory, num_blocks)
        engine = _assemble(network, constants, plan, host, options, groups, directory, model, reference)
        note.text = f"{constants.nbytes / 1e6:,.0f} MB of weights"
    return engine


def random_engine(
    directory: Path,
    *,
    host: PluginHost,
    options: BuildOptions,
    seed: int = 0,
    kv_cache_memory: float | int = 0.9,
    num_blocks: int | None = None,
    taps: Sequence[str] = (),
    reference: bool = False,
    progress: Progress | None = None,
) -> LoadedEngine:
    """An engine of a ``config.json``'s shape whose weights are random numbers, made on the device.

    Nothing is measured: each op gets the first kernel that can run it.
    """
    model, config = _family(_config(directory), host)
    with step(progress or Silent(), "make weights") as note:
        dtype = config.dtype or "float32"
        network = make_network(model, config, options, checkpoint_dtype=dtype, host=host, taps=taps)
        shapes = {name: tuple(p.shape) for name, p in network.module.named_parameters()}
        constants = Constants(at_random(seed, shapes, network.target.dtype, network.target.device))
        plan = Plan(devices.label(network.target.device), deterministic=options.deterministic)
        groups = _groups(network, options, kv_cache_memory, num_blocks)
        engine = _assemble(network, constants, plan, host, options, groups, directory, model, reference)
        note.text = f"{constants.nbytes / 1e6:,.0f} MB of random weights"
    return engine


def _config(directory: Path) -> Mapping[str, object]:
    """The model's config: a checkpoint and an engine carry theirs, any other directory has a config.json."""
    if is_engine(directory):
        return EngineManifest.read(directory).checkpoint.config
    if is_checkpoint(directory):
        return Manifest.read(directory).config
    return read_json(directory, "config.json", limit=JSON_LIMIT)


def _family(raw: Mapping[str, object], host: PluginHost) -> tuple[Model, ModelConfig]:
    names = raw.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise ConfigError(
            "E-CFG-ARCHITECTURE", "config.json, field architectures", "names no architecture", found=repr(names)
        )
    kind = raw.get("model_type")
    model = host.model_for_architecture(names[0], model_type=kind if isinstance(kind, str) else None)
    return model, parse_config(model, raw)


def _assemble(
    network: Network,
    constants: Constants,
    plan: Plan,
    host: PluginHost,
    options: BuildOptions,
    groups: tuple[CacheGroup, ...],
    directory: Path,
    model: Model,
    reference: bool,
) -> LoadedEngine:
    device = network.target.device
    store = KVStore(network.program.caches, groups, network.geometry.kv_dtype, device)
    inputs = StepInputs(store, network.limits, network.max_seq_len, device)
    runner: Runner | ReferenceRunner
    if reference and options.deterministic:
        raise ConfigError("E-ENGINE-OPTION", "reference", "the references are not batch-invariant: not deterministic")
    if reference:
        runner = ReferenceRunner(network.module, constants.source, inputs)
    else:
        kernels = bind(network.program, network.shapes, plan, constants, host, network.target, options.kernels)
        weights = {weight: constants(weight) for weight in network.program.weights()}
        runner = Runner(StepProgram(network.program, network.shapes, kernels, weights, inputs.views, device), inputs)
    return LoadedEngine(
        runner=runner,
        cache_groups=groups,
        options=options,
        vocab_size=network.vocab_size,
        max_seq_len=network.max_seq_len,
        directory=directory,
        model_name=model.name,
        prefix_caching=not _length_dependent(network.program),
        network=network,
        plan=plan,
    )


def _groups(
    network: Network, options: BuildOptions, memory: float | int, num_blocks: int | None
) -> tuple[CacheGroup, ...]:
    if num_blocks is not None:
        specs = cache_groups(network.program.caches)
        return tuple(CacheGroup(num_blocks, options.block_size, spec.window) for spec in specs)
    if isinstance(memory, bool) or not isinstance(memory, (int, float)) or memory <= 0 or (memory > 1 and memory % 1):
        raise ConfigError(
            "E-KV-MEMORY",
            "kv_cache_memory",
            "is neither a fraction of the free memory nor a number of bytes",
            found=repr(memory),
            expected="a fraction in (0, 1], or an integer of bytes",
        )
    free = devices.free_memory(network.target.device)
    budget = int(memory * free) if memory <= 1 else int(memory)
    return plan_groups(
        network.program.caches,
        budget=budget,
        block_size=options.block_size,
        dtype=network.geometry.kv_dtype,
        max_seq_len=network.max_seq_len,
        max_batch_size=options.max_batch_size,
        max_num_tokens=options.max_num_tokens,
    )


def _length_dependent(program: Program) -> bool:
    """Whether some keys depend on how long their prompt was: NTK scaling by the current length makes them so."""
    ropes = [arg for i in program.instructions for arg in i.args if isinstance(arg, Rope)]
    return any(rope.kind == "dynamic" for rope in ropes)


def _plan(directory: Path, network: Network, options: BuildOptions) -> Plan:
    label = devices.label(network.target.device)
    path = plan_file(directory, label, options.tensor_parallel)
    if path.is_file():
        plan = Plan.read(path)
        if plan.deterministic == options.deterministic:
            return plan
        log.warning("engine %s: %s was made for another mode", directory.name, path.name)
    log.warning("engine %s has no plan for %s: default kernels run it", directory.name, path.stem)
    return Plan(label, deterministic=options.deterministic)


def _report_drift(then: Mapping[str, str], now: Mapping[str, str]) -> None:
    for name, version in then.items():
        if name in now and now[name] != version:
            log.warning("engine was built with %s %s, this is %s", name, version, now[name])


def _check_ranks(options: BuildOptions, ranks: Ranks) -> None:
    if options.tensor_parallel != ranks.size:
        raise ConfigError(
            "E-ENGINE-RANKS",
            "tensor_parallel",
            "the engine was built for another number of ranks",
            found=str(ranks.size),
            expected=str(options.tensor_parallel),
        )
