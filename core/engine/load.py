"""Loading an engine: its plan bound to functions, its weights mapped, its caches allocated."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bestiary.core import device as devices
from bestiary.core.checkpoint.kv_scales import calibrated
from bestiary.core.checkpoint.mapped import MappedFiles
from bestiary.core.checkpoint.parameters import check_names, parse_config
from bestiary.core.checkpoint.weights import Weights
from bestiary.core.config import ModelConfig, Rope
from bestiary.core.engine.cache_plan import plan_cache
from bestiary.core.engine.constants import Constants, RandomTensors, constants_of
from bestiary.core.engine.engine import EngineManifest, plan_file
from bestiary.core.engine.fallback import announce, check_fallback
from bestiary.core.engine.family import config_of, family_of
from bestiary.core.engine.memory import mapped_dtypes
from bestiary.core.engine.memory_cap import MemoryCap
from bestiary.core.engine.network import Network, make_network
from bestiary.core.engine.options import BuildOptions
from bestiary.core.engine.taps import ReferenceTaps, TapNames, TapPrograms
from bestiary.core.errors import ConfigError
from bestiary.core.kv_format import KINDS
from bestiary.core.observe.log import observe_for_log
from bestiary.core.ops.collective import UNDIVIDED, Place
from bestiary.core.plugins import PluginHost
from bestiary.core.program.bind import bind
from bestiary.core.program.bound import StepProgram
from bestiary.core.program.plan import Plan
from bestiary.core.program.program import Program
from bestiary.core.progress import Progress, Silent, step
from bestiary.core.quant.choose import Methods, chosen, methods_in
from bestiary.core.quant.tensors import Overlaid, Plain
from bestiary.core.runtime.cache_groups import CacheGroup
from bestiary.core.runtime.graphs import DecodeGraphs
from bestiary.core.runtime.inputs import StepInputs
from bestiary.core.runtime.kv_store import KVStore
from bestiary.core.runtime.reference import ReferenceRunner
from bestiary.core.runtime.runner import Runner
from bestiary.spec import Model

log = logging.getLogger("bestiary.engine")


@dataclass(frozen=True)
class LoadedEngine:
    """An engine ready to run.

    Attributes:
        prefix_caching: whether equal prefixes have equal keys; not so where angles depend on the prompt's length.
        weight_files: the files whose pages are weights of this engine.
        taps: the tensors that requests may keep.
        methods: the quantization method of each parameter that is read quantized, by name.
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
    weight_files: MappedFiles
    taps: TapNames
    methods: Methods


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
    memory_limit: int | None = None,
    graphs: bool | None = None,
    place: Place = UNDIVIDED,
    taps: Sequence[str] = (),
    without_fusions: Collection[str] = (),
    dtype: str | None = None,
    kv_dtype: str | None = None,
    deterministic: bool | None = None,
    quantization: str | None = None,
    plain: Plain | None = None,
    reference: bool = False,
    progress: Progress | None = None,
) -> LoadedEngine:
    """Load an engine directory.

    Args:
        device: where to run, if not where it was built for.
        kv_cache_memory: a fraction (at most 1) of the memory that is free once the weights are there, or bytes (of
            each rank). The ranks of a divided engine agree on the fewest blocks that one of them can hold.
        num_blocks: blocks of each cache group, in place of ``kv_cache_memory``.
        kernels: op → kernel, over what the plan says.
        max_batch_size, max_seq_len, graphs: in place of the build's.
        memory_limit: most bytes of the device's memory for this process with the engine; the cache gets what is left.
        place: this process's place in a divided engine.
        taps, without_fusions: see :func:`~bestiary.core.engine.network.make_network`; ``Runner.forward`` returns
            the tensors.
        dtype: of weights, activations and cache, in place of the build's; nothing was measured for another.
        kv_dtype: of the cache alone.
        deterministic: in place of the build's, which then has no plan.
        quantization: rules for an engine whose weights are not quantized: they are as they are read.
        plain: parameters that are read plain all the same.
        reference: run the model's own forward on the ops' references, without a step program.

    Raises:
        MissingInputError, DataError: the directory is no engine, or damaged.
        ConfigError: the options don't fit; in deterministic mode, an op has no batch-invariant kernel.
        PluginError: a plugin that is needed is missing.
    """
    manifest = EngineManifest.read(directory)
    changes: dict[str, Any] = {
        "device": device,
        "max_batch_size": max_batch_size,
        "max_seq_len": max_seq_len,
        "graphs": graphs,
        "dtype": dtype,
        "kv_dtype": dtype if kv_dtype is None else kv_dtype,
        "deterministic": deterministic,
        "quantization": quantization,
    }
    options = replace(manifest.options, **{name: value for name, value in changes.items() if value is not None})
    options = replace(options, kernels={**options.kernels, **(kernels or {})})
    if reference:
        options = _plain_cache(options)
    _check_place(options, place, reference)
    model = host.model(manifest.checkpoint.model)
    check_names(model, manifest.checkpoint.model_format)
    check_fallback(model, options, memory_limit)
    config = parse_config(model, manifest.checkpoint.config)
    known = methods_of(manifest, quantization, model, config, host)
    methods = {name: one for name, one in known.items() if plain is None or name not in plain.names}
    with step(progress or Silent(), "load") as note:
        network = make_network(
            model,
            config,
            options,
            checkpoint_dtype=manifest.checkpoint.dtype,
            host=host,
            place=place,
            taps=taps,
            without_fusions=without_fusions,
            kv_scales=calibrated(manifest.checkpoint.quantization, options.kv_dtype),
            methods=methods,
        )
        manifest.check_lock(host)
        plan = _plan(directory, network, options)
        files = Weights.open(directory)
        constants = _constants(files, network, known, plain)
        mapped = {name: dtype for name, dtype in mapped_dtypes(files).items() if name not in methods}
        cap = MemoryCap.of(network, options, host, mapped, memory_limit, reference)
        constants.make(() if reference else network.program.weights())
        note.text = f"{constants.nbytes / 1e6:,.0f} MB of weights"
        groups = plan_cache(network, options, cap.cache_memory(kv_cache_memory), num_blocks, place)
        engine = _assemble(
            network, constants, plan, host, options, groups, directory, model, reference, cap, files.mapped, methods
        )
        files.let_go()
        note.text += announce(model, manifest.checkpoint.config, host)
    return engine


def random_engine(
    directory: Path,
    *,
    host: PluginHost,
    options: BuildOptions,
    seed: int = 0,
    kv_cache_memory: float | int = 0.9,
    num_blocks: int | None = None,
    memory_limit: int | None = None,
    taps: Sequence[str] = (),
    reference: bool = False,
    progress: Progress | None = None,
) -> LoadedEngine:
    """An engine of a ``config.json``'s shape whose weights are random numbers, made on the device.

    Nothing is measured: each op gets the first kernel that can run it.
    """
    raw = config_of(directory)
    model, config = family_of(raw, host)
    check_fallback(model, options, memory_limit)
    if reference:
        options = _plain_cache(options)
    methods = chosen(options.quantization, model, config, host)
    with step(progress or Silent(), "make weights") as note:
        dtype = config.dtype or "float32"
        network = make_network(model, config, options, checkpoint_dtype=dtype, host=host, taps=taps, methods=methods)
        shapes = {name: tuple(p.shape) for name, p in network.module.named_parameters()}
        made = RandomTensors(seed, shapes, network.target.dtype, network.target.device)
        constants = constants_of(made, shapes, network, methods)
        plan = Plan(devices.label(network.target.device), deterministic=options.deterministic)
        cap = MemoryCap.of(network, options, host, {}, memory_limit, reference)
        constants.make(() if reference else network.program.weights())
        note.text = f"{constants.nbytes / 1e6:,.0f} MB of random weights"
        groups = plan_cache(network, options, cap.cache_memory(kv_cache_memory), num_blocks, UNDIVIDED)
        engine = _assemble(
            network, constants, plan, host, options, groups, directory, model, reference, cap, MappedFiles(), methods
        )
        note.text += announce(model, raw, host)
    return engine


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
    cap: MemoryCap,
    weight_files: MappedFiles,
    methods: Methods,
) -> LoadedEngine:
    cap.check(groups)
    device = network.target.device
    program = network.program
    store = KVStore(program.caches, program.group_of, groups, network.geometry.kv_dtype, device)
    inputs = StepInputs(store, network.limits, network.max_seq_len, device)
    runner: Runner | ReferenceRunner
    taps: TapNames
    if reference and options.deterministic:
        raise ConfigError("E-ENGINE-OPTION", "reference", "the references are not batch-invariant: not deterministic")
    if reference:
        runner, taps = ReferenceRunner(network.module, constants.source, inputs), ReferenceTaps(network)
    else:
        chosen = (host, network.target, options.kernels)
        kernels = bind(program, network.shapes, plan, constants, *chosen, constants.release)
        weights = constants.kept(program.weights())
        steps = StepProgram(program, network.shapes, kernels, weights, inputs.views, device)
        cap.reserve(steps)
        taps = tap_programs = TapPrograms(
            network,
            kernels,
            weights,
            inputs,
            bind=lambda calls, shapes: bind(calls, shapes, plan, constants.again, *chosen, lambda weight: None),
            constant=constants.again,
            room=cap.room(groups),
        )
        recorded = options.graphs and devices.records(device)
        graphs = DecodeGraphs(steps, inputs, network.limits, device) if recorded else None
        runner = Runner(steps, inputs, graphs, tap_programs.program)
        observe_for_log(runner, device, network.target.dtype)
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
        weight_files=weight_files,
        taps=taps,
        methods=methods,
    )


def _constants(files: Weights, network: Network, methods: Methods, plain: Plain | None) -> Constants:
    """The constants of a network whose parameters are in files, but for some that may be others' or restored."""
    if plain is None:
        return constants_of(files, files.entries, network, methods)
    others = plain.names if plain.source is not None else frozenset[str]()
    # Of those that are restored the method has to be known.
    read = {
        name: one
        for name, one in methods.items()
        if not (name in plain.names and name in files.entries.keys() | others)
    }
    tensors = files if plain.source is None else Overlaid(files, Weights.open(plain.source), others)
    return constants_of(tensors, files.entries.keys() | others, network, read, plain.noise)


def methods_of(
    manifest: EngineManifest, rules: str | None, model: Model, config: ModelConfig, host: PluginHost
) -> Methods:
    """The method of each quantized parameter of an engine: as its files are, or as rules for plain ones say.

    Args:
        rules: what its user said; None: what its build was told.

    Raises:
        ConfigError: rules for weights that are quantized by others already, or that don't fit the model.
        DataError, PluginError: as :func:`~bestiary.core.quant.choose.methods_in`.
    """
    stored = {name: one.method for name, one in methods_in(manifest.checkpoint.quantization, host).items()}
    rules = manifest.options.quantization if rules is None else rules
    if rules is None or (stored and rules == manifest.options.quantization):
        return stored
    if stored:
        raise ConfigError(
            "E-ENGINE-OPTION", "quantization", "the engine's weights are quantized already", found=rules,
            expected=manifest.options.quantization or f"{len(stored)} quantized weights as they are",
            hint="build an engine of the plain checkpoint",
        )  # fmt: skip
    return chosen(rules, model, config, host)


def _length_dependent(program: Program) -> bool:
    """Whether some keys depend on how long their prompt was: NTK scaling by the current length makes them so."""
    ropes = [arg for i in program.instructions for arg in i.args if isinstance(arg, Rope)]
    return any(rope.kind == "dynamic" for rope in ropes)


def _plan(directory: Path, network: Network, options: BuildOptions) -> Plan:
    label = devices.label(network.target.device)
    path = plan_file(directory, label, options)
    if path.is_file():
        plan = Plan.read(path)
        if plan.deterministic == options.deterministic:
            return plan
        log.warning("engine %s: %s was made for another mode", directory.name, path.name)
    log.warning("engine %s has no plan for %s: default kernels run it", directory.name, path.stem)
    return Plan(label, deterministic=options.deterministic)


def _plain_cache(options: BuildOptions) -> BuildOptions:
    """The reference mode runs the model's own ops, which know elements only."""
    return replace(options, kv_dtype="auto") if options.kv_dtype in KINDS else options


def _check_place(options: BuildOptions, place: Place, reference: bool) -> None:
    degrees = (("tensor_parallel", place.tensor.size, "ranks"), ("pipeline_parallel", place.stage.size, "stages"))
    for name, found, what in degrees:
        if getattr(options, name) != found:
            raise ConfigError(
                "E-ENGINE-RANKS",
                name,
                f"the engine was built for another number of {what}",
                found=str(found),
                expected=str(getattr(options, name)),
            )
    if reference and place.count > 1:
        raise ConfigError(
            "E-ENGINE-RANKS",
            "reference",
            "the reference mode runs the whole model",
            found=str(place),
            expected="1 rank",
        )
