"""How far a tensor lies from its reference, in units of the tolerance."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bestiary.core.ops.declare import Tolerance


def excess(found: Tensor, wanted: Tensor, tolerances: Mapping[str, Tolerance]) -> float:
    """The largest ``|found − wanted| / (absolute + relative · |wanted|)``: right means at most 1.

    Infinite where one side is not finite and the other differs, or the op has no tolerance for the dtype. Integers must
    agree exactly.
    """
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return float("inf")
    if found.numel() == 0 or torch.equal(found, wanted):
        return 0.0
    tolerance = tolerances.get(str(wanted.dtype).removeprefix("torch."))
    if tolerance is None or not wanted.dtype.is_floating_point:
        return float("inf")
    difference = (found.double() - wanted.double()).abs()
    allowed = tolerance.absolute + tolerance.relative * wanted.double().abs()
    ratio = torch.where(found == wanted, 0.0, difference / allowed)
    return float(ratio.nan_to_num(nan=float("inf"), posinf=float("inf")).max())
