"""A call as kernels and plans see it: facts about its arguments, its signature, its number of rows."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from bestiary.core.errors import PluginError
from bestiary.core.ops.declare import OpDeclaration
from bestiary.core.plugins import PluginHost, resolve
from bestiary.core.plugins.requirements import unmet
from bestiary.core.plugins.resolve import describe as describe_error
from bestiary.core.program.program import Input, Instruction, Value, Weight
from bestiary.core.program.shapes import Dim, Shape, Sizes
from bestiary.spec import Call, Kernel, TensorFacts

#: The smallest step: what a kernel is asked about, since what it supports must not hang on the number of rows.
ONE = Sizes(1, 1, 1)

#: The kernel that every op has: its reference.
REFERENCE = "reference"


def describe(
    op: OpDeclaration[..., Any],
    args: tuple[Any, ...],
    shapes: Mapping[Value, Shape],
    dtype: torch.dtype,
    device: torch.device,
    features: frozenset[str],
    sizes: Sizes = ONE,
) -> Call:
    """What ``Kernel.supports`` is asked."""
    facts = {name: _fact(arg, shapes, dtype, sizes) for name, arg in zip(op.parameters, args, strict=True)}
    return Call(op.name, facts, device.type, features)


def signature(instruction: Instruction, shapes: Mapping[Value, Shape], dtype: torch.dtype) -> str:
    """The op with its arguments' shapes: calls that read alike are bound alike."""
    assert isinstance(instruction.target, OpDeclaration)
    return f"{instruction.target.name}({', '.join(_text(arg, shapes, dtype) for arg in instruction.args)})"


def rows_of(instruction: Instruction, shapes: Mapping[Value, Shape]) -> Dim:
    """The dim that a call's work grows with: the first one of its result, or of its first tensor."""
    for value in (*instruction.results, *instruction.values()):
        shape = None if isinstance(value, Weight) else shapes.get(value)
        if shape is not None and shape.dims:
            return shape.dims[0]
    return Dim(1)


def candidates(call: Call, host: PluginHost, *, invariant: bool = False) -> tuple[list[Kernel], dict[str, str]]:
    """The registered kernels that say they can run the call, and the reasons of those that can't.

    Where nothing is measured the first one runs. Those that are batch-invariant come last: mostly it costs them speed.

    Args:
        invariant: admit batch-invariant kernels only.
    """
    able, refused = [], {}
    for kernel in host.kernels(call.op):
        reason = unmet(kernel.requires) or supported(kernel, call) or _unknown_parameters(kernel, call, host)
        if invariant and not kernel.batch_invariant:
            reason = "it is not batch-invariant"
        if kernel.deterministic_only and not invariant:
            reason = "it is for deterministic mode"
        if reason is None:
            able.append(kernel)
        else:
            refused[kernel.name] = reason
    return sorted(able, key=lambda kernel: kernel.batch_invariant), refused


def supported(kernel: Kernel, call: Call) -> str | None:
    """A kernel's answer to whether it can run a call: None, or why not.

    Raises:
        PluginError: it raises, or answers something else.
    """
    label = f"kernel {kernel.op}={kernel.name}"
    try:
        reason: object = kernel.supports(call)
    except Exception as error:
        raise PluginError("E-KERNEL-SUPPORTS", label, f"its supports raised {describe_error(error)}") from error
    if reason is None or (isinstance(reason, str) and reason):
        return reason
    raise PluginError(
        "E-KERNEL-SUPPORTS",
        label,
        "its supports must answer None for yes, else the reason why not",
        found=repr(reason)[:80],
    )


def load_kernel(kernel: Kernel, op: OpDeclaration[..., Any]) -> Any:
    """Import a kernel's function, to be called with all of the op's parameters.

    A kernel may lack parameters that have a default: an op may gain such ones, and kernels written before stay right for the
    calls that there were then.

    Raises:
        PluginError: it can't be imported, or its parameters are not the op's.
    """
    run, known = _imported(kernel)
    out = ["out"] if op.results else []
    wanted = [name for name in op.parameters if name in known or name not in _defaults(op)]
    if known != [*wanted, *out]:
        raise PluginError(
            "E-KERNEL-SIGNATURE",
            f"kernel {kernel.op}={kernel.name} ({kernel.run})",
            "its parameters are not the op's",
            found=f"({', '.join(known)})",
            expected=f"({', '.join([*op.parameters, *out])}), out keyword-only",
        )
    if len(wanted) == len(op.parameters):
        return run
    places = [op.parameters.index(name) for name in wanted]
    return lambda *args, **out: run(*(args[place] for place in places), **out)


def _unknown_parameters(kernel: Kernel, call: Call, host: PluginHost) -> str | None:
    """Why a kernel that is older than some of the op's parameters can't run a call that uses them."""
    used = [name for name, default in _defaults(load_op(call.op, host)).items() if call.arguments[name] != default]
    if not used:
        return None
    unknown = [name for name in used if name not in _imported(kernel)[1]]
    return f"it does not know the parameter {', '.join(unknown)}" if unknown else None


def _imported(kernel: Kernel) -> tuple[Any, list[str]]:
    """A kernel's function and the names of its parameters."""
    run = resolve(kernel.run, needed_by=f"kernel {kernel.op}={kernel.name}")
    return run, list(inspect.signature(run).parameters)


def _defaults(op: OpDeclaration[..., Any]) -> dict[str, Any]:
    """The parameters that a call may leave out."""
    empty = inspect.Parameter.empty
    return {name: one.default for name, one in op.signature.parameters.items() if one.default is not empty}


def load_op(name: str, host: PluginHost) -> OpDeclaration[..., Any]:
    """Import an op's declaration.

    Raises:
        PluginError: nobody registered it, or what they registered is no declaration.
    """
    found = resolve(host.op(name).declaration, needed_by=f"op {name}")
    if not isinstance(found, OpDeclaration) or found.name != name:
        raise PluginError(
            "E-OP-DECLARATION", f"op {name}", "is not what its plugin says", found=repr(found), expected=f"<op {name}>"
        )
    return found


def _fact(argument: Any, shapes: Mapping[Value, Shape], dtype: torch.dtype, sizes: Sizes) -> Any:
    if isinstance(argument, Weight):
        return TensorFacts(argument.shape, _name(argument.dtype(dtype)))
    if isinstance(argument, Value):
        shape = shapes[argument]
        return TensorFacts(shape.at(sizes), _name(shape.dtype), shape.base is None)
    if isinstance(argument, (list, tuple)):
        return type(argument)(_fact(item, shapes, dtype, sizes) for item in argument)
    return argument


def _text(argument: Any, shapes: Mapping[Value, Shape], dtype: torch.dtype) -> str:
    if isinstance(argument, Weight):
        return f"{_name(argument.dtype(dtype))}{list(argument.shape)}"
    if isinstance(argument, Input) and argument.name.startswith(("k.", "v.")):
        # How many blocks a cache has is known when memory is, not when kernels are chosen.
        dims = ", ".join(["B", *map(str, shapes[argument].dims[1:])])
        return f"{_name(shapes[argument].dtype)}[{dims}]"
    if isinstance(argument, Value):
        return f"{shapes[argument]}"
    if isinstance(argument, list):
        # Many tensors, such as all weights: each kind with how often it comes.
        counts = Counter(_text(item, shapes, dtype) for item in argument)
        return "[" + ", ".join(f"{count}·{text}" for text, count in counts.items()) + "]"
    text = getattr(argument, "kind", argument)
    return str(text) if isinstance(text, str) else repr(argument)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
