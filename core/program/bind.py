"""Binding: from a plan's names to functions, with constants packed as each kernel wants them."""

from __future__ import annotations

import difflib
import logging
from collections import Counter
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
from bestiary.core.program.deterministic import able_at_all_sizes, check_override
from bestiary.core.program.plan import Choice, Plan
from bestiary.core.program.program import Instruction, Program, Value, Weight
from bestiary.core.program.shapes import Shape, Sizes
from bestiary.spec import Kernel

log = logging.getLogger("bestiary.plan")


#: Kernels are asked what they support, and measured, at these numbers of rows; an answer holds for fewer rows too, down
#: to the one before, and the last for all larger ones.
ROWS = (1, 8, 64, 512)
# Ops that an error names.
_SHOWN = 6


@dataclass(frozen=True)
class Target:
    """Where and how the program will run; ``deterministic``: each call by one batch-invariant kernel at all sizes."""

    device: torch.device
    features: frozenset[str]
    dtype: torch.dtype
    deterministic: bool = False


def check_overrides(overrides: Mapping[str, str], host: PluginHost, *, deterministic: bool = False) -> None:
    """Refuse ``--kernel`` names that nobody registered and, in deterministic mode, kernels that are not batch-invariant.

    Raises:
        ConfigError: naming the op or the kernels there are.
    """
    for op, name in overrides.items():
        ops = [one.name for one in host.ops()]
        if op != "*" and op not in ops:
            near = difflib.get_close_matches(op, ops, n=3)
            raise ConfigError(
                "E-KERNEL-NAME",
                f"kernel {op}={name}",
                "no such op",
                found=op,
                expected=f"one of the {len(ops)} ops: {', '.join(sorted(ops)[:_SHOWN])}, …",
                hint=f"did you mean {' or '.join(near)}? bestiary kernels lists them all" if near else None,
            )
        known = sorted({REFERENCE, *(kernel.name for kernel in host.kernels(None if op == "*" else op))})
        if name not in known:
            raise ConfigError(
                "E-KERNEL-NAME", f"kernel {op}={name}", "no such kernel", found=name, expected=" or ".join(known)
            )
        if deterministic:
            check_override(op, name, host)


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
    release: Callable[[Weight], None],
) -> dict[Instruction, tuple[BoundKernel, ...]]:
    """The kernels of every instruction, by rows; ``release`` is told of each weight that nobody reads unpacked.

    What the plan does not know, or names but can't be used here, gets the first kernel that can run it, with a line in
    the log: an engine is a cache, not a prison. In deterministic mode that kernel is batch-invariant too.

    Raises:
        ConfigError: in deterministic mode, an op that no batch-invariant kernel can run.
    """
    runs: dict[str, Callable[..., None]] = {}

    def kernels_of(instruction: Instruction, op: OpDeclaration[..., Any]) -> tuple[BoundKernel, ...]:
        def ask(rows: int) -> tuple[list[Kernel], dict[str, str]]:
            sizes = Sizes(rows, rows, rows)
            facts = describe(op, instruction.args, shapes, target.dtype, target.device, target.features, sizes)
            return candidates(facts, host, invariant=target.deterministic)

        name = signature(instruction, shapes, target.dtype)
        bound: list[BoundKernel] = []
        layouts: dict[str, dict[int, Any]] = {}
        choices = (_one_choice if target.deterministic else _choices)(op, name, plan, overrides, ask)
        for choice in choices:
            kernel = _usable(op, choice, ask(choice.rows or ROWS[-1])[0])
            key = f"{op.name}={kernel.name if kernel else REFERENCE}"
            if key not in runs:
                runs[key] = load_kernel(kernel, op) if kernel else reference_kernel(op)
            if kernel and kernel.pack and kernel.pack not in layouts:
                layouts[kernel.pack] = pack(kernel, op, instruction, weights)
            packed = layouts[kernel.pack] if kernel and kernel.pack else {}
            safe = kernel is not None and kernel.graph_safe
            bound.append(BoundKernel(choice.rows, kernel.name if kernel else REFERENCE, runs[key], packed, safe))
        return tuple(bound)

    made: dict[Instruction, tuple[BoundKernel, ...]] = {}
    readers = _readers(program)
    for instruction in program.instructions:
        if isinstance(instruction.target, OpDeclaration):
            made[instruction] = kernels_of(instruction, instruction.target)
            for weight in packed_away(instruction, made[instruction]):
                readers[weight] -= 1
                if not readers[weight]:
                    release(weight)
    return made


def packed_away(instruction: Instruction, kernels: tuple[BoundKernel, ...]) -> set[Weight]:
    """The weights that an instruction reads in the layouts of its kernels only."""
    places = set.intersection(*(set(kernel.packed) for kernel in kernels))
    return {argument for index in places if isinstance(argument := instruction.args[index], Weight)}


def _readers(program: Program) -> Counter[Weight]:
    """How many instructions read each weight."""
    weights = [{value for value in i.values() if isinstance(value, Weight)} for i in program.instructions]
    return Counter(weight for of_one in weights for weight in of_one)


def _choices(
    op: OpDeclaration[..., Any],
    name: str,
    plan: Plan,
    overrides: Mapping[str, str],
    ask: Callable[[int], tuple[list[Kernel], dict[str, str]]],
) -> tuple[Choice, ...]:
    """What the user named, else what the plan says, else at each size the first kernel that can run it."""
    answers = {rows: ask(rows) for rows in ROWS}
    named = {rows: overridden(op.name, overrides, *answer) for rows, answer in answers.items()}
    if name in plan.choices and not any(named.values()):
        return plan.choices[name]
    choices = []
    for rows, (able, _) in answers.items():
        default = able[0].name if able else REFERENCE
        reason = "named by the user" if named[rows] else "not measured"
        choices.append(Choice(None if rows == ROWS[-1] else rows, named[rows] or default, reason))
    log.info("%s: %s runs it", name, ", ".join(dict.fromkeys(f"{c.kernel} ({c.reason})" for c in choices)))
    return tuple(choices)


def _one_choice(
    op: OpDeclaration[..., Any],
    name: str,
    plan: Plan,
    overrides: Mapping[str, str],
    ask: Callable[[int], tuple[list[Kernel], dict[str, str]]],
) -> tuple[Choice, ...]:
    """Deterministic mode: one kernel for all sizes, what the user named, else the plan's, else the first that can."""
    able, refused = able_at_all_sizes(op, [ask(rows) for rows in ROWS])
    named = overridden(op.name, overrides, able, refused)
    planned = plan.choices.get(name, ())
    if named is None and len(planned) == 1 and planned[0].kernel in [kernel.name for kernel in able]:
        return planned
    return (Choice(None, named or able[0].name, "named by the user" if named else "not measured"),)


def _usable(op: OpDeclaration[..., Any], choice: Choice, able: list[Kernel]) -> Kernel | None:
    """The chosen kernel, or where it can't be used here the first that can; None for the reference."""
    if choice.kernel == REFERENCE:
        return None
    kernel = next((kernel for kernel in able if kernel.name == choice.kernel), None)
    if kernel is None:
        kernel = able[0] if able else None
        stand_in = kernel.name if kernel else REFERENCE
        log.warning("kernel %s=%s of the plan can't be used here; %s runs it", op.name, choice.kernel, stand_in)
    return kernel


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
