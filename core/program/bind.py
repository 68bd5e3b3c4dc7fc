"""Binding: from a plan's names to functions, with constants packed as each kernel wants them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bestiary.core.errors import ConfigError
from bestiary.core.ops.declare import OpDeclaration
from bestiary.core.plugins import PluginHost, resolve
from bestiary.core.program.bound import BoundKernel, reference_kernel
from bestiary.core.program.calls import REFERENCE, candidates, describe, load_kernel, signature
from bestiary.core.program.plan import Choice, Plan
from bestiary.core.program.program import Instruction, Program, Value, Weight
from bestiary.core.program.shapes import Shape
from bestiary.spec import Call, Kernel

log = logging.getLogger("bestiary.plan")


@dataclass(frozen=True)
class Target:
    """Where the program will run."""

    device: torch.device
    features: frozenset[str]
    dtype: torch.dtype


def check_overrides(overrides: Mapping[str, str], host: PluginHost) -> None:
    """Refuse ``--kernel`` names that nobody registered.

    Raises:
        ConfigError: naming the op or the kernels there are.
    """
    for op, name in overrides.items():
        known = sorted({REFERENCE, *(kernel.name for kernel in host.kernels(None if op == "*" else op))})
        if op != "*":
            host.op(op)
        if name not in known:
            raise ConfigError(
                "E-KERNEL-NAME", f"kernel {op}={name}", "no such kernel", found=name, expected=" or ".join(known)
            )


def overridden(op: str, overrides: Mapping[str, str], able: list[Kernel], refused: Mapping[str, str]) -> str | None:
    """The kernel that the user named for an op, if any. ``*`` names one for every op that has it.

    Raises:
        ConfigError: the kernel was named for this very op and can't run the call.
    """
    name = overrides.get(op)
    if name is not None and name in refused:
        raise ConfigError("E-KERNEL-SUPPORT", f"kernel {op}={name}", f"can't run this model's call: {refused[name]}")
    if name is None:
        name = overrides.get("*")
        if name is not None and name != REFERENCE and name not in [kernel.name for kernel in able]:
            return None
    return name


def bind(
    program: Program,
    shapes: Mapping[Value, Shape],
    plan: Plan,
    weights: Callable[[Weight], Tensor],
    host: PluginHost,
    target: Target,
    overrides: Mapping[str, str],
) -> dict[Instruction, tuple[BoundKernel, ...]]:
    """The kernels of every instruction, by rows.

    What the plan does not know, or names but can't be used here, gets the first kernel that can run it, with a line in
    the log: an engine is a cache, not a prison.
    """
    bound = {}
    runs: dict[str, Callable[..., None]] = {}
    for instruction in program.instructions:
        op = instruction.target
        if not isinstance(op, OpDeclaration):
            continue
        call = describe(op, instruction.args, shapes, target.dtype, target.device, target.features)
        able, refused = candidates(call, host)
        named = overridden(op.name, overrides, able, refused)
        choices = plan.choices.get(signature(instruction, shapes, target.dtype))
        if named is not None:
            choices = (Choice(None, named, "named by the user"),)
        elif choices is None:
            choices = (default_choice(call, able),)
            log.info("plan: %s is not in the plan; %s runs it", call.op, choices[0].kernel)
        bound[instruction] = tuple(_bound(op, c, able, call, runs, instruction, weights) for c in choices)
    return bound


def default_choice(call: Call, able: list[Kernel]) -> Choice:
    """Without measurements: the first registered kernel that can run the call, else the reference."""
    name = able[0].name if able else REFERENCE
    return Choice(None, name, "not measured")


def _bound(
    op: OpDeclaration[..., Any],
    choice: Choice,
    able: list[Kernel],
    call: Call,
    runs: dict[str, Callable[..., None]],
    instruction: Instruction,
    weights: Callable[[Weight], Tensor],
) -> BoundKernel:
    kernel = next((kernel for kernel in able if kernel.name == choice.kernel), None)
    if kernel is None and choice.kernel != REFERENCE:
        fallback = default_choice(call, able)
        log.warning("plan: kernel %s=%s can't be used here; %s runs it", op.name, choice.kernel, fallback.kernel)
        return _bound(op, Choice(choice.rows, fallback.kernel, ""), able, call, runs, instruction, weights)
    key = f"{op.name}={choice.kernel}"
    if key not in runs:
        runs[key] = reference_kernel(op) if kernel is None else load_kernel(kernel, op)
    packed = {} if kernel is None or kernel.pack is None else pack(kernel, op, instruction, weights)
    return BoundKernel(choice.rows, choice.kernel, runs[key], packed)


def pack(
    kernel: Kernel, op: OpDeclaration[..., Any], instruction: Instruction, weights: Callable[[Weight], Tensor]
) -> dict[int, Any]:
    """The call's constants as the kernel's ``pack`` lays them out, by position."""
    assert kernel.pack is not None
    constants = {
        name: weights(argument)
        for name, argument in zip(op.parameters, instruction.args, strict=True)
        if isinstance(argument, Weight)
    }
    made = resolve(kernel.pack, needed_by=f"kernel {kernel.op}={kernel.name}")(constants)
    return {op.parameters.index(name): value for name, value in made.items()}
