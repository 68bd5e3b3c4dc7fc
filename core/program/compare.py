"""How far a tensor lies from its reference, in units of the tolerance, and what a kernel may do to a tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bestiary.core.ops.declare import Tolerance


@dataclass(frozen=True)
class Deviation:
    """How a tensor differs from its reference.

    Args:
        excess: the largest ``|found − wanted| / (absolute + relative · |wanted|)`` of the op's tolerance: right means at
            most 1. Infinite where one side is not finite and the other differs, the dtype has no tolerance, or integers
            differ.
        absolute, relative: the largest ``|found − wanted|``, and that over ``|wanted|``.
        index: of the element with the largest excess.
    """

    excess: float = 0.0
    absolute: float = 0.0
    relative: float = 0.0
    index: tuple[int, ...] = ()

    def __str__(self) -> str:
        where = f" at {list(self.index)}" if self.index else ""
        return (
            f"an error {self.excess:.3g} times the tolerance{where} "
            f"(at most {self.absolute:.3g} absolute, {self.relative:.3g} relative)"
        )


def deviation(found: Tensor, wanted: Tensor, tolerances: Mapping[str, Tolerance]) -> Deviation:
    """Compare two tensors of one shape and dtype; any other pair is infinitely far apart."""
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return Deviation(float("inf"))
    if found.numel() == 0 or torch.equal(found, wanted):
        return Deviation()
    tolerance = tolerances.get(str(wanted.dtype).removeprefix("torch."))
    if tolerance is None or not wanted.dtype.is_floating_point:
        tolerance = Tolerance(0.0, 0.0)
    size = wanted.double().abs()
    difference = torch.where(found == wanted, 0.0, (found.double() - wanted.double()).abs())
    ratios = _finite(torch.where(found == wanted, 0.0, difference / (tolerance.absolute + tolerance.relative * size)))
    place = int(ratios.argmax())
    index = tuple(int(one) for one in torch.unravel_index(torch.tensor(place), ratios.shape))
    relative = _finite(torch.where(difference == 0, 0.0, difference / size))
    return Deviation(float(ratios.view(-1)[place]), float(_finite(difference).max()), float(relative.max()), index)


def layout(tensor: Tensor) -> tuple[object, ...]:
    """What a kernel must leave as it is of every tensor that it is given: shape, strides, dtype, device and place."""
    return tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device, tensor.data_ptr()


def _finite(ratios: Tensor) -> Tensor:
    return ratios.contiguous().nan_to_num(nan=float("inf"), posinf=float("inf"))
