"""What the child process of a self-test does: one call of a kernel beside the op's reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from bestiary.core import device as devices
from bestiary.core.conformance.kernel_cases import constants
from bestiary.core.conformance.kernel_run import faked
from bestiary.core.doctor.trial_calls import Subject, TrialCall, own_inputs
from bestiary.core.engine.network import Network
from bestiary.core.engine.sample import sample_inputs
from bestiary.core.errors import PluginError
from bestiary.core.ops.declare import OpDeclaration
from bestiary.core.plugins import PluginHost, resolve
from bestiary.core.program.against import Against
from bestiary.core.program.bind import pack
from bestiary.core.program.calls import load_kernel, load_op, signature
from bestiary.core.program.program import Instruction, Weight, fill
from bestiary.core.program.samples import Samples, spoiled
from bestiary.core.program.shapes import Sizes
from bestiary.spec import Kernel

_TILE = 65_537  # random numbers that a weight repeats; prime, so that no two rows of it are alike


@dataclass(frozen=True)
class SelfTestJob:
    """A call to make, and the plugins that the child loads. Without a call it makes itself ready for the subjects' calls."""

    plugins: tuple[str, ...]
    prefer: tuple[tuple[str, str], ...]
    subjects: tuple[Subject, ...]
    call: TrialCall | None = None


def serve(job: SelfTestJob, say: Callable[[str], None]) -> dict[str, Any]:
    """Make the call: ``{"error": fraction of the tolerance}``, or ``{"wrong": text}``."""
    for subject in job.subjects:
        _networks(job.plugins, job.prefer, subject)
    if job.call is None:
        return {}
    say(str(job.call))
    try:
        with torch.no_grad():
            return {"error": _against(job, job.call).worst("of this call").excess}
    except PluginError as error:
        devices.synchronize(torch.device(job.call.device))  # raises where the device is lost
        return {"wrong": error.problem + (f"; found {error.found}" if error.found else "")}


def _against(job: SelfTestJob, call: TrialCall) -> Against:
    host = _host(job.plugins, job.prefer)
    op, kernel = load_op(call.op, host), host.kernel(call.op, call.kernel)
    run, device = load_kernel(kernel, op), torch.device(call.device)
    label = f"kernel {call.op}={call.kernel}"
    if call.signature is None:
        args = list(own_inputs(op, device, getattr(torch, call.dtype)))[call.number]
        outs = tuple(spoiled(torch.empty_like(out, device=device)) for out in faked(op, args))
        return Against(op, run, args, outs, _packed(kernel, op, args), device=device, label=label)
    network = _networks(job.plugins, job.prefer, call.subject)[call.stage]
    instruction = _instruction(network, call.signature)
    given: dict[Weight, Tensor] = {}

    def weights(weight: Weight) -> Tensor:
        return given.setdefault(weight, _weight(weight, network.target.dtype, device))

    samples = Samples(
        network.program, network.shapes, _inputs(network), weights, device, torch.Generator(device).manual_seed(0)
    )
    packed = {} if kernel.pack is None else pack(kernel, op, instruction, weights)
    args = fill(instruction.args, samples.values(instruction, call.sizes).__getitem__)
    return Against(op, run, args, samples.results(instruction, call.sizes), packed, device=device, label=label)


def _instruction(network: Network, name: str) -> Instruction:
    of_ops = (one for one in network.program.instructions if isinstance(one.target, OpDeclaration))
    return next(one for one in of_ops if signature(one, network.shapes, network.target.dtype) == name)


def _inputs(network: Network) -> Callable[[Sizes], Mapping[str, Tensor]]:
    def make(sizes: Sizes) -> Mapping[str, Tensor]:
        return sample_inputs(network.program, network.geometry, sizes, network.vocab_size, network.target.device)

    return make


def _packed(kernel: Kernel, op: OpDeclaration[..., Any], args: tuple[Any, ...]) -> dict[int, Any]:
    if kernel.pack is None:
        return {}
    made = resolve(kernel.pack, needed_by=f"kernel {kernel.op}={kernel.name}")(constants(op, args))
    return {op.parameters.index(name): value for name, value in made.items()}


def _weight(weight: Weight, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Normal deviates with variance 1 / fan-in. A model's real sizes take seconds to fill with new numbers each."""
    generator = torch.Generator(device).manual_seed(1)
    fan_in = weight.shape[-1] if len(weight.shape) > 1 else 1
    tile = (torch.randn(_TILE, generator=generator, device=device) * fan_in**-0.5).to(dtype)
    count = torch.Size(weight.shape).numel()
    return tile.repeat(-(-count // _TILE))[:count].view(weight.shape)


@lru_cache(maxsize=1)
def _host(plugins: tuple[str, ...], prefer: tuple[tuple[str, str], ...]) -> PluginHost:
    return PluginHost.load(only=plugins, prefer=dict(prefer))


@lru_cache(maxsize=16)
def _networks(plugins: tuple[str, ...], prefer: tuple[tuple[str, str], ...], subject: Subject) -> list[Network]:
    return subject.networks(_host(plugins, prefer))
