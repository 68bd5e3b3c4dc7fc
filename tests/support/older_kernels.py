"""An op that has gained a parameter, and kernels written before and after. A plugin module."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from bestiary import Kernel, Op, hookimpl
from bestiary.ops import normal, op


def _inputs(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    yield normal(generator, 3, 4, dtype=dtype), 2.0, 0.0


@op(inputs=_inputs, name="older::scale")
def scale(x: Tensor, factor: float, shift: float = 0.0) -> Tensor:
    """``x · factor + shift``: any shape."""
    return x * factor + shift


def old(x: Tensor, factor: float, *, out: Tensor) -> None:
    torch.mul(x, factor, out=out)


def new(x: Tensor, factor: float, shift: float, *, out: Tensor) -> None:
    torch.add(x * factor, shift, out=out)


def lacks_more(x: Tensor, shift: float, *, out: Tensor) -> None:
    raise AssertionError


@hookimpl
def bestiary_register_ops(register: Callable[[Op], None]) -> None:
    register(Op(name="older::scale", declaration="older_kernels:scale"))


@hookimpl
def bestiary_register_kernels(register: Callable[[Kernel], None]) -> None:
    for name in ("old", "new"):
        register(Kernel(op="older::scale", name=name, run=f"older_kernels:{name}"))
