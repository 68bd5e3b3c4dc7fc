"""Each op's kernels on the devices of this machine, and why those that can't run here can't."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from bestiary.core.doctor.findings import Finding, Level
from bestiary.core.errors import BestiaryError
from bestiary.core.plugins.requirements import unmet
from bestiary.core.plugins.resolve import describe
from bestiary.spec import Call, Kernel, TensorFacts

if TYPE_CHECKING:
    from bestiary.core.ops.declare import OpDeclaration
    from bestiary.core.plugins import PluginHost

_DTYPES = ("float32", "bfloat16", "float16")
_CASES = 4  # of an op's test inputs in one dtype: what a kernel supports seldom hangs on the shape


def kernels(load: Callable[[], PluginHost]) -> Iterator[Finding]:
    """For each op and kind of device what can run it. Every op also has its reference."""
    from bestiary.core.program.calls import load_op

    host = load()
    places = _places()
    for op in sorted(host.ops(), key=lambda one: one.name):
        try:
            declaration = load_op(op.name, host)
            calls = {name: _calls(declaration, name, features) for name, features in places.items()}
            found = host.kernels(op.name)
        except BestiaryError as error:
            yield Finding(op.name, str(error), "error")
            continue
        except Exception as error:
            yield Finding(op.name, f"{host.origin(op)}: its test inputs can't be made: {describe(error)}", "error")
            continue
        for place, asked in calls.items():
            answers = [_answer(kernel, declaration, asked) for kernel in found]
            text = "; ".join(said for said, _ in answers) or "its reference only"
            worst: Level = "error" if any(bad for _, bad in answers) else "ok"
            yield Finding(op.name if len(calls) == 1 else f"{op.name} on {place}", text, worst)


def _places() -> dict[str, frozenset[str]]:
    """The kinds of devices here, with their features."""
    from bestiary.core import device

    found = {one.name.partition(":")[0]: one.features for one in device.inventory() if not one.problem}
    return {name: features for name, features in found.items() if name != "gpu"}


def _calls(op: OpDeclaration[..., Any], device: str, features: frozenset[str]) -> dict[str, list[Call]]:
    """By dtype, the calls that a kernel is asked about: the op's own test inputs."""
    import torch

    calls: dict[str, list[Call]] = {}
    for name in _DTYPES:
        if name in op.tolerances:
            inputs = islice(op.inputs(torch.Generator().manual_seed(0), getattr(torch, name)), _CASES)
            facts = [dict(zip(op.parameters, map(_fact, args), strict=True)) for args in inputs]
            calls[name] = [Call(op.name, arguments, device, features) for arguments in facts]
    return calls


def _fact(argument: Any) -> Any:
    import torch

    if not isinstance(argument, torch.Tensor):
        return argument
    dtype = str(argument.dtype).removeprefix("torch.")
    return TensorFacts(tuple(argument.shape), dtype, argument.is_contiguous())


def _answer(kernel: Kernel, op: OpDeclaration[..., Any], calls: dict[str, list[Call]]) -> tuple[str, bool]:
    """What is said of one kernel, and whether it is broken."""
    from bestiary.core.program.calls import load_kernel

    if (reason := unmet(kernel.requires)) is not None:
        return f"{kernel.name}: no, {reason}", False
    runs, refusals = [], []
    try:
        for dtype, asked in calls.items():
            reasons = [kernel.supports(call) for call in asked]
            if asked and any(one is None for one in reasons):
                runs.append(dtype)
            refusals += [str(one) for one in reasons if one is not None]
    except Exception as error:
        return f"{kernel.name}: its supports() raised {describe(error)}", True
    if not runs:
        return f"{kernel.name}: no, {refusals[0] if refusals else 'it was asked nothing'}", False
    try:
        load_kernel(kernel, op)
    except BestiaryError as error:
        return f"{kernel.name}: {error}", True
    limits = [", ".join(runs)] if len(runs) < len(calls) else []
    limits += ["deterministic mode"] if kernel.deterministic_only else []
    return kernel.name + (f" ({'; '.join(limits)})" if limits else ""), False
