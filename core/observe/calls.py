"""One observed call, as people read it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from bestiary.core.observe.costs import arguments, cost_of
from bestiary.core.program.bound import BoundCall
from bestiary.core.program.program import Input

#: What a function of torch's, which no kernel runs, has for its kernel.
TORCH = "torch"
_SHORT = {"float": "f", "bfloat": "bf", "int": "i", "uint": "u"}


class Call(NamedTuple):
    """A call that was made.

    Args:
        op: its name.
        kernel: which ran it.
        module: path of the module whose forward called it.
        takes, gives: its tensors, as ``bf16[5, 48]``, by the op's parameters.
        began: seconds since the recording began.
        seconds: on the device.
        flops: None where the op declares no cost.
        bytes: read and written.
    """

    op: str
    kernel: str
    module: str
    takes: str
    gives: str
    began: float
    seconds: float
    flops: int | None
    bytes: int

    @property
    def shapes(self) -> str:
        """What it takes and gives."""
        return f"{self.takes} → {self.gives}" if self.gives else self.takes


def describe(call: BoundCall, dtype: torch.dtype, began: float, seconds: float) -> Call:
    """A call and its time.

    Args:
        dtype: of the engine's weights.
    """
    instruction, cost = call.instruction, cost_of(call, dtype)
    pairs = zip(instruction.args, arguments(call, dtype), strict=True)
    takes = [text for declared, given in pairs if (text := _text(declared, given))]
    gives = [shape(result) for result in call.results]
    return Call(
        instruction.target.name.removeprefix("torch."),
        call.kernel or TORCH,
        instruction.scope,
        " ".join(takes),
        " ".join(gives),
        began,
        seconds,
        cost.flops,
        cost.bytes,
    )


def shape(tensor: Tensor) -> str:
    """``bf16[5, 48]``."""
    name = str(tensor.dtype).removeprefix("torch.")
    kind = name.rstrip("0123456789")
    return f"{_SHORT.get(kind, kind)}{name[len(kind) :]}[{', '.join(map(str, tensor.shape))}]"


def _text(declared: Any, given: Any) -> str:
    if isinstance(declared, Input) and declared.name.startswith(("k.", "v.")):
        return f"{declared.name[0]}-cache {shape(given)}"
    if isinstance(given, Tensor):
        return shape(given)
    if isinstance(given, (list, tuple)):
        return " ".join(shape(item) for item in given if isinstance(item, Tensor))
    return ""
