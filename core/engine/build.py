"""Building an engine: trace, passes, a kernel for every call, and a directory that loads without the checkpoint."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from bestiary.core import device as devices
from bestiary.core.checkpoint.checkpoint import Checkpoint
from bestiary.core.checkpoint.files import json_bytes
from bestiary.core.checkpoint.kv_scales import calibrated
from bestiary.core.checkpoint.manifest import Manifest
from bestiary.core.checkpoint.parameters import check_names, parse_config
from bestiary.core.checkpoint.transaction import check_target, new_directory, scratch_beside
from bestiary.core.checkpoint.verify import verify
from bestiary.core.engine.constants import Constants, constants_of
from bestiary.core.engine.engine import EngineManifest, plan_file
from bestiary.core.engine.network import Network, check_options, make_network
from bestiary.core.engine.options import BuildOptions
from bestiary.core.engine.sample import sample_inputs
from bestiary.core.ops.collective import Place, Ranks
from bestiary.core.plugins import PluginHost
from bestiary.core.program.plan import Plan
from bestiary.core.program.probe import Probe
from bestiary.core.program.shapes import Sizes
from bestiary.core.program.tune import Tuner
from bestiary.core.progress import Progress, Silent, step
from bestiary.core.quant.choose import methods_in


@dataclass(frozen=True)
class BuildReport:
    """What was built."""

    engine: str
    model: str
    plan: Plan

    def explain(self) -> str:
        """Every distinct call, the kernels that were tried, and why the one was chosen."""
        return self.plan.table()

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {"engine": self.engine, "model": self.model, "plan": self.plan.as_dict()}


def build(
    checkpoint: Path,
    target: Path,
    *,
    host: PluginHost,
    options: BuildOptions | None = None,
    overwrite: bool = False,
    verified: bool = False,
    progress: Progress | None = None,
) -> BuildReport:
    """Build an engine directory from a checkpoint directory, whose digests are checked first.

    Args:
        verified: this process has just checked them.

    Raises:
        OutputError: the target exists.
        MissingInputError, DataError: the checkpoint is absent or damaged.
        ConfigError: the options don't fit the model or the device.
        PluginError: a plugin that is needed is missing, or a kernel is wrong.
    """
    options, progress = options or BuildOptions(), progress or Silent()
    check_target(target, overwrite=overwrite)
    if options.quantization is not None:
        check_options(options, host)
        with scratch_beside(target) as scratch:
            from bestiary.converters.quantize import quantize

            plain, checkpoint = checkpoint, scratch / "checkpoint"
            quantize(plain, checkpoint, host=host, rules=options.quantization, verified=verified, progress=progress)
            return _build(checkpoint, target, host, options, overwrite, progress)
    Checkpoint.open(checkpoint)
    if not verified:
        verify(checkpoint, host=host, progress=progress)
    return _build(checkpoint, target, host, options, overwrite, progress)


def _build(
    checkpoint: Path, target: Path, host: PluginHost, options: BuildOptions, overwrite: bool, progress: Progress
) -> BuildReport:
    source = Checkpoint.open(checkpoint)
    manifest = source.manifest
    model = host.model(manifest.model)
    check_names(model, manifest.model_format)
    config = parse_config(model, manifest.config)
    methods = {name: one.method for name, one in methods_in(manifest.quantization, host).items()}
    with step(progress, "build: trace") as note:
        # The plan is made for the first tensor-parallel rank of each stage; the others' calls look the same.
        places = [
            Place(Ranks(0, options.tensor_parallel), Ranks(stage, options.pipeline_parallel))
            for stage in range(options.pipeline_parallel)
        ]
        networks = [
            make_network(
                model,
                config,
                options,
                checkpoint_dtype=manifest.dtype,
                host=host,
                place=place,
                methods=methods,
                kv_scales=calibrated(manifest.quantization, options.kv_dtype),
            )
            for place in places
        ]
        calls = sum(len(network.program.instructions) for network in networks)
        note.text = f"{calls} calls, {sum(sum(network.fusions.values()) for network in networks)} fusions"
    network = networks[0]
    constants = constants_of(source.weights, source.weights.entries, network, methods)
    plan = make_plan(networks, constants, host, options, progress)
    with new_directory(target, overwrite=overwrite) as directory:
        _write(directory, checkpoint, manifest, plan, _resolved(options, network), host)
    return BuildReport(target.name, manifest.model, plan)


def unmeasured(checkpoint: Path, target: Path, *, host: PluginHost, options: BuildOptions) -> None:
    """An engine of a checkpoint at once: each op gets the first kernel that can run it, or the one that ``options`` name.

    Raises:
        OutputError: the target exists.
        MissingInputError, DataError: the checkpoint is absent or damaged.
        ConfigError: there is no such device.
    """
    manifest = Checkpoint.open(checkpoint).manifest
    plan = Plan(devices.label(devices.choose(options.device)), deterministic=options.deterministic)
    with new_directory(target, overwrite=False) as directory:
        _write(directory, checkpoint, manifest, plan, options, host)


def _write(
    directory: Path, checkpoint: Path, manifest: Manifest, plan: Plan, options: BuildOptions, host: PluginHost
) -> None:
    for name in manifest.files:
        link_or_copy(checkpoint / name, directory / name)
    place = plan_file(directory, plan.device, options)
    place.parent.mkdir()
    place.write_bytes(json_bytes(plan.as_dict()))
    EngineManifest(manifest, options, EngineManifest.lock_of(host)).write(directory)


def make_plan(
    networks: Sequence[Network], constants: Constants, host: PluginHost, options: BuildOptions, progress: Progress
) -> Plan:
    """Choose the kernels of a model's pipeline stages by checking and timing the candidates."""
    plan = Plan(devices.label(networks[0].target.device), deterministic=options.deterministic)
    with Probe(host) as probe:
        _choose(plan, networks, constants, host, options, probe, progress)
    return plan


def _choose(
    plan: Plan,
    networks: Sequence[Network],
    constants: Constants,
    host: PluginHost,
    options: BuildOptions,
    probe: Probe,
    progress: Progress,
) -> None:
    for network in networks:

        def inputs(sizes: Sizes, network: Network = network) -> Mapping[str, Tensor]:
            return sample_inputs(network.program, network.geometry, sizes, network.vocab_size, network.target.device)

        target, shapes, longest = network.target, network.shapes, network.max_seq_len
        tuner = Tuner(host, target, shapes, inputs, constants, options.kernels, longest, probe)
        # Logits of more rows than there are requests are wanted for prompt logprobs only: not worth measuring for.
        limits = network.limits._replace(rows=network.limits.sequences)
        tuner.extend(plan, network.program, limits, progress)
        for name, count in network.fusions.items():
            plan.fusions[name] = plan.fusions.get(name, 0) + count


def _resolved(options: BuildOptions, network: Network) -> BuildOptions:
    """The options with what "auto" came to; the device stays open, since an engine also loads on others."""
    dtype, kv_dtype = (str(d).removeprefix("torch.") for d in (network.geometry.dtype, network.geometry.kv_dtype))
    return replace(options, dtype=dtype, kv_dtype=kv_dtype, max_seq_len=network.max_seq_len)


def link_or_copy(source: Path, target: Path) -> None:
    """The same bytes without a second copy where the file system can; weights are never written to in place."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
