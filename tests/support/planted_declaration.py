"""A plugin whose fusion drops a term in the op itself: traced, it is the pattern; run, its reference forgets a factor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Proxy

from bestiary import Fusion, Kernel, Op, hookimpl, ops
from bestiary.ops import normal, op


def _inputs(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    gate, up = (normal(generator, 3, 8, dtype=dtype) for _ in "gu")
    yield gate, up, "silu", normal(generator, 6, 8, dtype=dtype), None


@op(
    name="planted::short_down",
    inputs=_inputs,
    fake=lambda gate, up, kind, weight, bias: gate.new_empty(len(gate), weight.shape[0]),
    rows=("gate", "up"),
)
def short_down(gate: Tensor, up: Tensor, kind: str, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Said to be ``linear(gated_activation(gate, up), weight, bias)``."""
    if isinstance(gate, Proxy):
        return ops.linear(ops.gated_activation(gate, up, kind), weight, bias)
    return torch.nn.functional.silu(gate) @ weight.t()


def run(gate: Tensor, up: Tensor, kind: str, weight: Tensor, bias: Tensor | None, *, out: Tensor) -> None:
    out.copy_(short_down.reference(gate, up, kind, weight, bias))


@hookimpl
def bestiary_register_ops(register: Callable[[Op], None]) -> None:
    register(Op(name="planted::short_down", declaration=f"{__name__}:short_down"))


@hookimpl
def bestiary_register_kernels(register: Callable[[Kernel], None]) -> None:
    register(Kernel(op="planted::short_down", name="as_declared", run=f"{__name__}:run"))


@hookimpl
def bestiary_register_fusions(register: Callable[[Fusion], None]) -> None:
    register(Fusion(name="short_product", op="planted::short_down"))
