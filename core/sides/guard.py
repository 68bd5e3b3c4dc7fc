"""Whether a call changes what it must leave alone: its inputs, and what a cache holds of tokens that are not the step's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bestiary.core.ops.declare import OpDeclaration
from bestiary.core.program.bound import BoundCall
from bestiary.core.program.program import Input

#: By size of a number in bytes: integers that compare NaN and -0, too.
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Change(NamedTuple):
    """What a call changed of an input.

    Args:
        parameter: the op's.
        cached: it is a cache that the op may write, and other tokens' keys or values were changed in it.
        changed, total: how many of its numbers.
    """

    parameter: str
    cached: bool
    changed: int
    total: int


class _Kept(NamedTuple):
    parameter: str
    cached: bool
    place: Tensor
    before: Tensor


class Guard:
    """Copies of what a call must leave as it is, taken before it is made.

    Args:
        rows: which of the sequence's tokens the step has: their slots are the ones that it may write.
    """

    def __init__(self, call: BoundCall, rows: slice) -> None:
        target = call.instruction.target
        assert isinstance(target, OpDeclaration)
        self._kept: list[_Kept] = []
        for parameter, value, argument in zip(target.parameters, call.instruction.args, call.args, strict=True):
            if parameter not in target.mutates:
                self._kept += [_Kept(parameter, False, one, one.clone()) for one in _tensors(argument)]
            elif is_cache(value) and argument.ndim > 2:  # of a block of bytes only its format knows what is whose
                slots = argument[:-1].flatten(0, 1)  # the last block belongs to nobody
                for part in (slots[: rows.start], slots[rows.stop :]):
                    self._kept.append(_Kept(parameter, True, part, part.clone()))

    def undo(self) -> Iterator[Change]:
        """What the call changed all the same; it is put back."""
        for one in self._kept:
            bits = _BITS[one.before.element_size()]
            there, before = one.place.view(bits), one.before.view(bits)
            if not torch.equal(there, before):
                changed = int((there != before).sum())
                one.place.copy_(one.before)
                yield Change(one.parameter, one.cached, changed, one.place.numel())


def is_cache(value: Any) -> bool:
    """Whether an argument of an instruction is the memory of a layer's keys or values, ``[blocks, block_size, …]``."""
    return isinstance(value, Input) and value.name.startswith(("k.", "v."))


def _tensors(argument: Any) -> Iterator[Tensor]:
    if isinstance(argument, Tensor):
        for dim, stride in enumerate(argument.stride()):
            if stride == 0 and argument.shape[dim] > 1:  # one number, shown many times
                argument = argument.narrow(dim, 0, 1)
        yield argument
    elif isinstance(argument, list | tuple):
        for one in argument:
            yield from _tensors(one)
