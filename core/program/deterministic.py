"""What deterministic mode refuses: anything that nobody vouches for to compute a row alike whatever rows surround it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bestiary.core.errors import ConfigError
from bestiary.core.ops.declare import OpDeclaration
from bestiary.core.plugins import PluginHost
from bestiary.core.program.calls import REFERENCE
from bestiary.core.program.program import Program, TorchCall, Value
from bestiary.core.program.shapes import Shape
from bestiary.spec import Kernel

#: Functions besides the ops that a model may call: they move elements, or round once for each.
_ELEMENTWISE = frozenset(
    (
        "add",
        "sub",
        "mul",
        "div",
        "truediv",
        "neg",
        "cat",
        "clone",
        "contiguous",
        "flatten",
        "float",
        "reshape",
        "to",
        "type_as",
    )
)


def check_override(op: str, name: str, host: PluginHost) -> None:
    """Refuse a kernel that the user named (``*``: for every op that has it) and that is not batch-invariant.

    Raises:
        ConfigError: with the kernels that are.
    """
    kernels = host.kernels(None if op == "*" else op)
    varying = sorted(kernel.op for kernel in kernels if kernel.name == name and not kernel.batch_invariant)
    if varying or name == REFERENCE:
        known = sorted({kernel.name for kernel in kernels if kernel.batch_invariant and kernel.name != name})
        raise ConfigError(
            "E-KERNEL-VARIANT",
            f"kernel {op}={name}",
            "is not batch-invariant, and deterministic mode takes no other",
            found=f"{name} of {', '.join(varying)}" if varying else name,
            expected=" or ".join(known) or "no kernel of this op is",
        )


def able_at_all_sizes(
    op: OpDeclaration[..., object], answers: Sequence[tuple[list[Kernel], dict[str, str]]]
) -> tuple[list[Kernel], dict[str, str]]:
    """Of the answers at several numbers of rows, the kernels that can run the call at each, and why the others can't.

    Raises:
        ConfigError: there is none.
    """
    refused = {name: reason for _, reasons in answers for name, reason in reasons.items()}
    able = [kernel for kernel in answers[0][0] if kernel.name not in refused]
    if not able:
        raise ConfigError(
            "E-KERNEL-VARIANT",
            f"op {op.name}",
            "deterministic mode has no kernel for it",
            found="; ".join(f"{name}: {reason}" for name, reason in refused.items()) or "only its reference",
            expected="one registered with batch_invariant=True that runs any number of rows",
            hint="install a plugin that has one, or build without deterministic",
        )
    return able, refused


def check_calls(program: Program, shapes: Mapping[Value, Shape]) -> None:
    """Refuse torch functions that a model calls besides the ops, but views and those that act on each element alone.

    Raises:
        ConfigError: naming the function and the module.
    """
    for instruction in program.instructions:
        call = instruction.target
        if not isinstance(call, TorchCall) or shapes[instruction.results[0]].base is not None:
            continue
        if call.name.removeprefix("torch.") not in _ELEMENTWISE:
            raise ConfigError(
                "E-KERNEL-VARIANT",
                f"{call.name} in {instruction.scope or 'the model'}",
                "deterministic mode can't tell whether it is batch-invariant",
                expected="an op, a view, or one of " + ", ".join(sorted(_ELEMENTWISE)),
                hint="declare an op with a batch-invariant kernel, or build without deterministic",
            )
