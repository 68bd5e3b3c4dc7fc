"""A plugin whose fusion drops a term: its kernel does."""

from __future__ import annotations

from collections.abc import Callable

from bestiary import Fusion, Kernel, Op, hookimpl


@hookimpl
def bestiary_register_ops(register: Callable[[Op], None]) -> None:
    register(Op(name="planted::gated_down", declaration="planted:gated_down"))


@hookimpl
def bestiary_register_kernels(register: Callable[[Kernel], None]) -> None:
    register(Kernel(op="planted::gated_down", name="without_up", run="planted:without_up"))


@hookimpl
def bestiary_register_fusions(register: Callable[[Fusion], None]) -> None:
    register(Fusion(name="gated_product", op="planted::gated_down"))
