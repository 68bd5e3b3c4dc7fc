"""Making a plan: every candidate kernel is checked against the reference and timed on the model's own shapes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bestiary.core import device as devices
from bestiary.core.ops.collective import Ranks
from bestiary.core.ops.declare import OpDeclaration
from bestiary.core.plugins import PluginHost
from bestiary.core.program.against import Against
from bestiary.core.program.bind import Target, overridden, pack
from bestiary.core.program.calls import REFERENCE, candidates, describe, load_kernel, rows_of, signature
from bestiary.core.program.deterministic import able_at_all_sizes
from bestiary.core.program.plan import Choice, Plan, Trial
from bestiary.core.program.probe import Probe
from bestiary.core.program.program import Instruction, Program, Value, Weight, fill
from bestiary.core.program.samples import Samples, sampled
from bestiary.core.program.shapes import Shape, Sizes
from bestiary.core.progress import Progress
from bestiary.spec import Kernel

_BUDGET = 0.03  # seconds of timing for one kernel at one size, five runs at least
_LEAST_RUNS, _MOST_RUNS = 5, 50
#: A kernel replaces the first one only where it takes less than so much of its time.
_WORTHWHILE = 0.8
_OTHER = "choose another with --kernel {}=NAME"


class Tuner:
    """Fills a plan. ``inputs`` gives a sample step's tensors at the sizes asked for, ``weights`` the constants,
    ``longest`` the most tokens of a sequence; ``probe`` runs plugins' kernels before they run here.
    """

    def __init__(
        self,
        host: PluginHost,
        target: Target,
        shapes: Mapping[Value, Shape],
        inputs: Callable[[Sizes], Mapping[str, Tensor]],
        weights: Callable[[Weight], Tensor],
        overrides: Mapping[str, str],
        longest: int,
        probe: Probe,
    ) -> None:
        self._probe = probe
        self._host, self._target, self._shapes, self._inputs = host, target, shapes, inputs
        self._weights, self._overrides, self._longest = weights, overrides, longest
        self._generator = torch.Generator(target.device).manual_seed(0)

    def extend(self, plan: Plan, program: Program, limits: Sizes, progress: Progress) -> None:
        """Choose for each distinct call of the program that the plan lacks; ``limits`` are the largest step's sizes."""
        distinct: dict[str, Instruction] = {}
        for instruction in program.instructions:
            if isinstance(instruction.target, OpDeclaration):
                name = signature(instruction, self._shapes, self._target.dtype)
                if name not in plan.choices:
                    distinct.setdefault(name, instruction)
                plan.counts[name] = plan.counts.get(name, 0) + 1
        progress.start("build: kernels", len(distinct), "calls")
        for name, instruction in distinct.items():
            plan.choices[name] = self._choices(program, instruction, limits)
            progress.advance(1)
        progress.finish(f"{len(distinct)} distinct calls")

    def _choices(self, program: Program, instruction: Instruction, limits: Sizes) -> tuple[Choice, ...]:
        rows = rows_of(instruction, self._shapes)
        at = sampled(rows, limits, self._longest)
        if self._target.deterministic:
            return (self._one_choice(program, instruction, list(at.values())),)
        choices = [self._choice(program, instruction, count, sizes) for count, sizes in at.items()]
        choices[-1] = replace(choices[-1], rows=None)
        same = all(choice.kernel == REFERENCE for choice in choices)
        return (choices[-1],) if same else tuple(choices)

    def _choice(self, program: Program, instruction: Instruction, rows: int, sizes: Sizes) -> Choice:
        op = instruction.target
        assert isinstance(op, OpDeclaration)
        able, refused = self._candidates(op, program, instruction, sizes)
        named = overridden(op.name, self._overrides, able, refused)
        if named is not None:
            able = [kernel for kernel in able if kernel.name == named]
        reasons = tuple(Trial(name, refused=reason) for name, reason in refused.items())
        if not able:
            return Choice(rows, REFERENCE, "named by the user" if named else "no other kernel can run it", reasons)
        if any(isinstance(argument, Ranks) and argument.size > 1 for argument in instruction.args):
            return Choice(
                rows, able[0].name, "named by the user" if named else "it takes other ranks to measure", reasons
            )
        trials = tuple(self._try(kernel, op, program, instruction, sizes) for kernel in able)
        best, reason = _preferred(trials)
        return Choice(rows, best, "named by the user" if named else reason, trials + reasons)

    def _one_choice(self, program: Program, instruction: Instruction, sizes: list[Sizes]) -> Choice:
        """Deterministic mode: one kernel for all sizes, the one with the least time a row, decodes and prompts together."""
        op = instruction.target
        assert isinstance(op, OpDeclaration)
        able, refused = able_at_all_sizes(op, [self._candidates(op, program, instruction, at) for at in sizes])
        named = overridden(op.name, self._overrides, able, refused)
        tried = [kernel for kernel in able if named in (None, kernel.name)]
        trials = {k.name: [self._try(k, op, program, instruction, at) for at in sizes] for k in tried}
        cost = {
            name: sum((trial.microseconds or 0.0) / at.tokens for trial, at in zip(made, sizes, strict=True))
            for name, made in trials.items()
        }
        best = min(cost, key=cost.__getitem__)
        reason = "named by the user" if named else "fastest" if len(tried) > 1 else "the only batch-invariant one"
        reasons = tuple(Trial(name, refused=text) for name, text in refused.items())
        return Choice(None, best, reason, tuple(made[-1] for made in trials.values()) + reasons)

    def _candidates(
        self, op: OpDeclaration[..., Any], program: Program, instruction: Instruction, sizes: Sizes
    ) -> tuple[list[Kernel], dict[str, str]]:
        target = self._target
        call = describe(op, instruction.args, self._shapes, target.dtype, target.device, target.features, sizes)
        able, refused = candidates(call, self._host, invariant=target.deterministic)
        for kernel in list(able):
            if (crash := self._crash(kernel, op, program, instruction, sizes)) is not None:
                able.remove(kernel)
                refused[kernel.name] = crash
        return able, refused

    def _crash(
        self, kernel: Kernel, op: OpDeclaration[..., Any], program: Program, instruction: Instruction, sizes: Sizes
    ) -> str | None:
        if not self._probe.concerns(kernel) or any(isinstance(a, Ranks) and a.size > 1 for a in instruction.args):
            return None
        samples = self._samples(program)
        values = samples.values(instruction, sizes)
        args = dict(zip(op.parameters, fill(instruction.args, values.__getitem__), strict=True))
        outs = samples.results(instruction, sizes)
        constants = [name for name, arg in zip(op.parameters, instruction.args, strict=True) if isinstance(arg, Weight)]
        return self._probe.crash(kernel, self._target.device, args, outs, constants)

    def _try(
        self, kernel: Kernel, op: OpDeclaration[..., Any], program: Program, instruction: Instruction, sizes: Sizes
    ) -> Trial:
        samples = self._samples(program)
        values = samples.values(instruction, sizes)
        call = Against(
            op,
            load_kernel(kernel, op),
            fill(instruction.args, values.__getitem__),
            samples.results(instruction, sizes),
            {} if kernel.pack is None else pack(kernel, op, instruction, self._weights),
            device=self._target.device,
            label=f"kernel {op.name}={kernel.name} at {signature(instruction, self._shapes, self._target.dtype)}",
            hint=_OTHER.format(op.name),
        )
        worst = call.worst(f"at {sizes.tokens} tokens")
        microseconds = self._time(call.again)
        # By now it was called several times on the same constants, as in a model: the last time counts as the first.
        call.worst_again(f"at {sizes.tokens} tokens, called again")
        return Trial(kernel.name, round(microseconds, 2), round(worst.excess, 4))

    def _time(self, run: Callable[[], None]) -> float:
        times: list[float] = []
        deadline = time.perf_counter() + _BUDGET
        while len(times) < _LEAST_RUNS or (time.perf_counter() < deadline and len(times) < _MOST_RUNS):
            devices.synchronize(self._target.device)
            start = time.perf_counter()
            run()
            devices.synchronize(self._target.device)
            times.append(time.perf_counter() - start)
        # The least is the kernel's own; what is above it belongs to whatever else the machine did.
        return min(times) * 1e6

    def _samples(self, program: Program) -> Samples:
        return Samples(program, self._shapes, self._inputs, self._weights, self._target.device, self._generator)


def _preferred(trials: tuple[Trial, ...]) -> tuple[str, str]:
    """The first kernel, unless another is faster by more than what measurements scatter: builds should agree."""
    if len(trials) == 1:
        return trials[0].kernel, "the only one"
    best = min(trials, key=lambda trial: trial.microseconds or 0.0)
    if (trials[0].microseconds or 0.0) * _WORTHWHILE <= (best.microseconds or 0.0):
        return trials[0].kernel, "fastest" if best is trials[0] else f"{best.kernel} is hardly faster"
    return best.kernel, "fastest"
