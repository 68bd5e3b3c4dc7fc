"""The calls that a self-test makes: those of a model's program by the kernels that a plan may choose, or typical ones."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bestiary.core import device as devices
from bestiary.core.conformance.kernel_cases import describe_call
from bestiary.core.doctor.typical import typical_network
from bestiary.core.engine.engine import is_engine, plan_file
from bestiary.core.engine.network import Network
from bestiary.core.engine.options import BuildOptions
from bestiary.core.errors import BestiaryError
from bestiary.core.ops.collective import Ranks
from bestiary.core.ops.declare import OpDeclaration
from bestiary.core.planning import known_of, networks
from bestiary.core.plugins import PluginHost
from bestiary.core.program.bind import overridden
from bestiary.core.program.calls import candidates, describe, load_op, rows_of, signature
from bestiary.core.program.plan import Plan
from bestiary.core.program.program import Instruction, Value, Weight
from bestiary.core.program.samples import sampled
from bestiary.core.program.shapes import Sizes
from bestiary.core.progress import Silent

_OWN_INPUTS = 2  # of an op that the typical decoder lacks


@dataclass(frozen=True)
class Subject:
    """What is tested: a model with its build options as JSON, or, where ``model`` is None, what is typical."""

    model: str | None
    said: str

    @property
    def options(self) -> BuildOptions:
        """As they were said; an engine's own are in its manifest."""
        return BuildOptions(**json.loads(self.said))

    def networks(self, host: PluginHost) -> list[Network]:
        """The program of each pipeline stage.

        Raises:
            BestiaryError: there is none; why not.
        """
        if self.model is None:
            return [typical_network(host, self.options)]
        return list(networks(known_of(self.model, host, json.loads(self.said), Silent()), host))


@dataclass(frozen=True)
class TrialCall:
    """One call of one kernel.

    Args:
        stage: whose program has the instruction with this signature.
        signature: None for a call on the op's own test input of this number.
        nbytes: of its arguments and results.
        first: whether the kernel is the plan's, or the one that runs where nothing is measured.
    """

    subject: Subject
    op: str
    kernel: str
    device: str
    dtype: str
    signature: str | None
    stage: int
    sizes: Sizes
    number: int
    nbytes: int
    first: bool

    def __str__(self) -> str:
        if self.signature is None:
            return f"{self.op} on its test input {self.number} in {self.dtype}"
        return f"{self.signature} at {self.sizes.tokens} tokens"


def calls_of(subject: Subject, host: PluginHost) -> Iterator[TrialCall]:
    """The calls of a model's program, or those of a typical one and of ops that it lacks.

    Raises:
        BestiaryError: there is no program; why not.
    """
    stages = subject.networks(host)
    for stage, network in enumerate(stages):
        yield from _of_network(subject, stage, network, host)
    if subject.model is None:
        known = {i.target.name for network in stages for i in network.program.instructions}
        yield from _of_own_inputs(subject, known, host)


def in_order(calls: Iterable[TrialCall]) -> list[TrialCall]:
    """Every kernel once before any a second time, what a plan would choose before others, the small before the large."""
    seen: Counter[tuple[str, str, str]] = Counter()
    keys = {}
    for call in sorted(calls, key=lambda one: one.nbytes):
        kernel = call.device, call.op, call.kernel
        keys[call] = seen[kernel] > 0, not call.first, call.nbytes
        seen[kernel] += 1
    return sorted(keys, key=keys.__getitem__)


def _of_network(subject: Subject, stage: int, network: Network, host: PluginHost) -> Iterator[TrialCall]:
    target, shapes = network.target, network.shapes
    plan, overrides = _plan(subject, network), subject.options.kernels
    limits = network.limits._replace(rows=network.limits.sequences)
    distinct: dict[str, Instruction] = {}
    for instruction in network.program.instructions:
        if isinstance(instruction.target, OpDeclaration):
            distinct.setdefault(signature(instruction, shapes, target.dtype), instruction)
    for name, instruction in distinct.items():
        op = instruction.target
        assert isinstance(op, OpDeclaration)
        if any(isinstance(argument, Ranks) and argument.size > 1 for argument in instruction.args):
            continue  # it takes other ranks
        for rows, sizes in sampled(rows_of(instruction, shapes), limits, network.max_seq_len).items():
            facts = describe(op, instruction.args, shapes, target.dtype, target.device, target.features, sizes)
            able, refused = candidates(facts, host, invariant=target.deterministic)
            names = [kernel.name for kernel in able]
            named = overridden(op.name, overrides, able, refused)
            choice = plan.kernel(name, rows) if plan else None
            chosen = named or (choice.kernel if choice else None)
            for kernel in names if chosen is None else [one for one in names if one == chosen]:
                yield TrialCall(
                    subject, op.name, kernel, str(target.device), _name(target.dtype), name, stage, sizes, 0,
                    _bytes(network, instruction, sizes), kernel == (chosen or names[0]),
                )  # fmt: skip


def _of_own_inputs(subject: Subject, known: set[str], host: PluginHost) -> Iterator[TrialCall]:
    options = subject.options
    device, dtype = devices.choose(options.device), getattr(torch, options.dtype)
    for name in sorted({kernel.op for kernel in host.kernels()} - known):
        try:
            op = load_op(name, host)
            cases = list(own_inputs(op, device, dtype)) if options.dtype in op.tolerances else []
        except BestiaryError:
            continue  # what is wrong with an op is told elsewhere
        for number, args in enumerate(cases):
            able, _ = candidates(describe_call(op, args, device), host)
            size = 2 * sum(arg.nbytes for arg in args if isinstance(arg, Tensor))
            for kernel in able:
                yield TrialCall(
                    subject, name, kernel.name, str(device), options.dtype, None, 0, Sizes(0, 0, 0), number,
                    size, kernel is able[0],
                )  # fmt: skip


def own_inputs(op: OpDeclaration[..., Any], device: torch.device, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    """The first of an op's own test inputs."""
    yield from islice(op.inputs(torch.Generator(device).manual_seed(0), dtype), _OWN_INPUTS)


def _plan(subject: Subject, network: Network) -> Plan | None:
    """The plan of an engine that is built, if it has one for this device."""
    if subject.model is None or not is_engine(Path(subject.model)):
        return None
    from bestiary.core.engine.engine import EngineManifest

    directory = Path(subject.model)
    path = plan_file(directory, devices.label(network.target.device), EngineManifest.read(directory).options)
    return Plan.read(path) if path.is_file() else None


def _bytes(network: Network, instruction: Instruction, sizes: Sizes) -> int:
    values: Mapping[Value, None] = dict.fromkeys([*instruction.values(), *instruction.results])
    total = 0
    for value in values:
        if isinstance(value, Weight):
            total += math.prod(value.shape) * network.target.dtype.itemsize
        else:
            shape = network.shapes[value]
            total += math.prod(shape.at(sizes)) * shape.dtype.itemsize
    return total


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
