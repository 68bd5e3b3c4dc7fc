"""Checks for plugins' own tests: is an op declared right, is a kernel right.

from bestiary.testing import check_kernel, check_op, kernel_cases, load_plugins

@pytest.mark.parametrize("case", kernel_cases(load_plugins()), ids=str)
def test_kernel(case): check_kernel(case)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from bestiary.core import device as devices
from bestiary.core.conformance.model import ModelConformance
from bestiary.core.ops.declare import OpDeclaration
from bestiary.core.plugins import PluginHost
from bestiary.core.plugins.resolve import resolve
from bestiary.core.program.bound import reference_kernel
from bestiary.core.program.calls import load_kernel, load_op
from bestiary.core.program.compare import excess
from bestiary.spec import Call, Kernel, TensorFacts

__all__ = [
    "KernelCase",
    "ModelConformance",
    "OpCase",
    "check_kernel",
    "check_op",
    "kernel_cases",
    "load_plugins",
    "op_cases",
]


@dataclass(frozen=True)
class OpCase:
    """A declared op."""

    op: OpDeclaration[..., Any]

    def __str__(self) -> str:
        return self.op.name


@dataclass(frozen=True)
class KernelCase:
    """A registered kernel of an op, on a device, in a dtype."""

    op: OpDeclaration[..., Any]
    kernel: Kernel
    device: str
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.op.name}={self.kernel.name}-{self.device}-{str(self.dtype).removeprefix('torch.')}"


def load_plugins(*plugins: ModuleType | str) -> PluginHost:
    """The installed plugins and those given, loaded strictly."""
    return PluginHost.load(plugins=plugins, strict=True)


def op_cases(host: PluginHost, names: Sequence[str] | None = None) -> list[OpCase]:
    """Every registered op, or those named."""
    return [OpCase(load_op(op.name, host)) for op in host.ops() if names is None or op.name in names]


def kernel_cases(host: PluginHost, names: Sequence[str] | None = None, device: str = "cpu") -> list[KernelCase]:
    """Every registered kernel (or those of the named plugins) in every dtype that its op has a tolerance for."""
    cases = []
    for kernel in host.kernels():
        if names is None or host.origin(kernel).plugin in names:
            op = load_op(kernel.op, host)
            cases += [
                KernelCase(op, kernel, device, getattr(torch, dtype)) for dtype in op.tolerances if dtype != "float64"
            ]
    return cases


def check_op(case: OpCase) -> None:
    """The declaration keeps its word: documented, and reference and fake agree on shapes, dtypes and what is changed.

    Raises:
        AssertionError: it does not; the message says how.
    """
    op = case.op
    assert op.__doc__ and "`" in op.__doc__, f"op {op.name}: its docstring gives no formula and shapes"
    seen = 0
    for dtype in op.tolerances:
        for args in op.inputs(torch.Generator().manual_seed(1), getattr(torch, dtype)):
            seen += 1
            before = _copies(args)
            made = _as_tuple(op.reference(*args))
            assert len(made) == op.results, f"op {op.name}: returned {len(made)} tensors, declares {op.results}"
            _check_untouched(op, args, before, f"op {op.name}'s reference")
            faked = _as_tuple(op.fake(*(a.to("meta") if isinstance(a, Tensor) else a for a in args)))
            for real, fake in zip(made, faked, strict=True):
                assert (real.shape, real.dtype) == (fake.shape, fake.dtype), (
                    f"op {op.name}: its fake says {fake.dtype}{list(fake.shape)}, "
                    f"its reference makes {real.dtype}{list(real.shape)}"
                )
    assert seen, f"op {op.name}: its input generator yields nothing"


def check_kernel(case: KernelCase) -> int:
    """A kernel against its op's reference on the op's inputs; how many of them it said it can run.

    It must write every element of ``out`` (which holds NaN before), change nothing but what the op says it changes,
    give the same result twice, and stay within the op's tolerance.

    Raises:
        AssertionError: it does not; the message says how.
    """
    op, kernel = case.op, case.kernel
    generator = torch.Generator(case.device).manual_seed(2)
    ran = 0
    for index, args in enumerate(op.inputs(generator, case.dtype)):
        if kernel.supports(_call(op, args, case.device)) is None:
            _check_case(op, kernel, args, f"{case}, case {index}")
            ran += 1
    return ran


def _check_case(op: OpDeclaration[..., Any], kernel: Kernel, args: tuple[Any, ...], label: str) -> None:
    run = load_kernel(kernel, op)
    results = []
    for _ in range(2):
        given = _copies(args)
        packed = _packed(op, kernel, given)
        untouched = _copies(given)
        outs = _outs(op, args)
        keywords = {"out": outs[0] if len(outs) == 1 else outs} if outs else {}
        run(*(packed.get(name, value) for name, value in zip(op.parameters, given, strict=True)), **keywords)
        _check_untouched(op, given, untouched, label)
        results.append((*outs, *_mutated(op, given)))
    expected_args, expected = _copies(args), _outs(op, args)
    keywords = {"out": expected[0] if len(expected) == 1 else expected} if expected else {}
    reference_kernel(op)(*expected_args, **keywords)
    for first, again in zip(*results, strict=True):
        assert torch.equal(first, again), f"{label}: gave two results for one input"
    for found, wanted in zip(results[0], (*expected, *_mutated(op, expected_args)), strict=True):
        error = excess(found, wanted, op.tolerances)
        assert error <= 1, f"{label}: error {error:.3g} times the tolerance"


def _packed(op: OpDeclaration[..., Any], kernel: Kernel, args: tuple[Any, ...]) -> dict[str, Any]:
    """Let the kernel pack what a build would: the op's constants."""
    if kernel.pack is None:
        return {}
    constants = {
        name: value
        for name, value in zip(op.parameters, args, strict=True)
        if isinstance(value, Tensor) and name in op.constants
    }
    made: dict[str, Any] = resolve(kernel.pack, needed_by=f"kernel {kernel.op}={kernel.name}")(constants)
    return made


def _call(op: OpDeclaration[..., Any], args: tuple[Any, ...], device: str) -> Call:
    facts = {
        name: TensorFacts(tuple(a.shape), str(a.dtype).removeprefix("torch."), a.is_contiguous())
        if isinstance(a, Tensor)
        else a
        for name, a in zip(op.parameters, args, strict=True)
    }
    return Call(op.name, facts, torch.device(device).type, devices.features(torch.device(device)))


def _outs(op: OpDeclaration[..., Any], args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    made = _as_tuple(op.reference(*_copies(args)))
    return tuple(m.new_empty(m.shape).fill_(float("nan") if m.is_floating_point() else -1) for m in made)


def _mutated(op: OpDeclaration[..., Any], args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    return tuple(value for name, value in zip(op.parameters, args, strict=True) if name in op.mutates)


def _check_untouched(op: OpDeclaration[..., Any], args: tuple[Any, ...], before: tuple[Any, ...], label: str) -> None:
    for name, now, then in zip(op.parameters, args, before, strict=True):
        if isinstance(now, Tensor) and name not in op.mutates:
            assert torch.equal(now, then), f"{label}: changed its argument {name}"


def _copies(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copies with the strides kept: a kernel must also run on slices."""
    return tuple(_copy(a) if isinstance(a, Tensor) else a for a in args)


def _copy(tensor: Tensor) -> Tensor:
    made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    return made.copy_(tensor)


def _as_tuple(made: Any) -> tuple[Tensor, ...]:
    return made if isinstance(made, tuple) else () if made is None else (made,)
