"""An op whose declaration takes the process that imports it, a kernel of it, and one of another op that is right."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from bestiary import Kernel, Op, hookimpl, ops


def right(x: Tensor, y: Tensor, *, out: Tensor) -> None:
    out.copy_(ops.mul.reference(x, y))


@hookimpl
def bestiary_register_ops(register: Callable[[Op], None]) -> None:
    register(Op(name="crashing::boom", declaration="crashing_declaration:boom"))


@hookimpl
def bestiary_register_kernels(register: Callable[[Kernel], None]) -> None:
    register(Kernel(op="crashing::boom", name="never", run="crashing_declaration:run"))
    register(Kernel(op="mul", name="right", run="crashing_ops:right"))
