"""What an observed call costs, by the op's own declaration or from its tensors."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from bestiary.core.ops.cost import nbytes
from bestiary.core.ops.declare import OpDeclaration
from bestiary.core.program.bound import BoundCall
from bestiary.core.program.program import Weight


class Known(NamedTuple):
    """``flops`` is None where the op declares no cost; ``bytes`` are then those of all its tensors."""

    flops: int | None
    bytes: int


def cost_of(call: BoundCall, dtype: torch.dtype) -> Known:
    """Of a call that is about to run or has run.

    Args:
        dtype: of the engine's weights, for those that the kernel has in a layout of its own.
    """
    args = arguments(call, dtype)
    target = call.instruction.target
    if isinstance(target, OpDeclaration) and target.cost is not None:
        cost = target.cost(*args)
        return Known(cost.flops, cost.bytes)
    return Known(None, nbytes(*_tensors(args), *call.results))


def arguments(call: BoundCall, dtype: torch.dtype) -> tuple[Any, ...]:
    """The op's arguments; a weight that is packed as a meta tensor of its first shape."""
    return tuple(
        torch.empty(declared.shape, dtype=dtype, device="meta")
        if isinstance(declared, Weight) and not _is(given, declared)
        else given
        for declared, given in zip(call.instruction.args, call.args, strict=True)
    )


def _is(given: Any, declared: Weight) -> bool:
    return isinstance(given, Tensor) and tuple(given.shape) == declared.shape


def _tensors(argument: Any) -> list[Tensor]:
    if isinstance(argument, Tensor):
        return [argument]
    if isinstance(argument, (list, tuple)):
        return [tensor for item in argument for tensor in _tensors(item)]
    return []
