"""How far a tensor lies from another, and how far it may."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

#: How many times what one rounding makes is still taken for rounding, by the dtype: in float32 sums of thousands of terms in
#: another order make more than their terms' own rounding; products of 16-bit numbers are summed in float32.
FACTORS = {torch.float32: 16.0, torch.float64: 16.0, torch.bfloat16: 2.0, torch.float16: 2.0}


@dataclass(frozen=True)
class Error:
    """Of a tensor against its reference.

    Args:
        largest: the largest absolute difference of two numbers.
        relative: the norm of the difference over the norm of the reference.
        cosine: of the angle between the two.
        scale: the largest absolute number of the reference.
        typical: the median over tokens of each row's ``relative``.
    """

    largest: float
    relative: float
    cosine: float
    scale: float = 0.0
    typical: float = 0.0

    @classmethod
    def of(cls, found: Tensor, wanted: Tensor) -> Error:
        """Numbers that are not finite on one side alone, and another number of elements, are infinitely far."""
        if found.numel() != wanted.numel():
            return cls(math.inf, math.inf, 0.0, typical=math.inf)
        if not wanted.numel():
            return cls(0.0, 0.0, 1.0)
        a, b = found.float().reshape(-1), wanted.float().reshape(-1)
        difference = (a - b).abs_()
        if not math.isfinite(float(difference.max())):
            both = a.isfinite() & b.isfinite()
            if not torch.equal(a[~both].nan_to_num(nan=0.5), b[~both].nan_to_num(nan=0.5)):
                return cls(math.inf, math.inf, 0.0, typical=math.inf)
            a, b, difference = a[both], b[both], difference[both]
            if not b.numel():
                return cls(0.0, 0.0, 1.0)
        apart, size, own = _norm(difference), _norm(b), _norm(a)
        relative = apart / size if size else math.inf if apart else 0.0
        product = own * size
        cosine = float((a * b).sum(dtype=torch.float64)) / product if product else float(apart == 0)
        typical = _typical(found, wanted) if len(a) == found.numel() else relative
        return cls(float(difference.max()), relative, min(1.0, cosine), float(b.abs().max()), typical)


def _typical(found: Tensor, wanted: Tensor) -> float:
    right = wanted.float().reshape(len(wanted), -1)
    rows = torch.linalg.vector_norm(found.float().reshape(right.shape) - right, dim=-1)
    sizes = torch.linalg.vector_norm(right, dim=-1)
    return float(torch.where(rows == 0, 0.0, rows / sizes).median())


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))


@dataclass(frozen=True)
class Allowance:
    """How far a tensor may lie from its reference.

    Args:
        factor: see :data:`FACTORS`.
        unit: the unit in the last place of the dtype, relative.
        rounding: what one rounding of all that the tensor is made of does to it, measured on the reference.
    """

    factor: float
    unit: float
    rounding: Error

    @property
    def relative(self) -> float:
        """Of the norm of the difference over the norm of the reference: the rounding of what it is made of and its own."""
        return self.factor * (self.rounding.relative + self.unit)

    def excess(self, error: Error) -> float:
        """An error over what is allowed, by the norm and by the largest difference: above 1 is no rounding."""
        largest = self.factor * (self.rounding.largest + self.unit * error.scale)
        by_norm = error.relative / self.relative
        by_largest = error.largest / largest if largest else math.inf if error.largest else 0.0
        return max(by_norm, by_largest)

    def typical_excess(self, error: Error) -> float:
        """The same of a typical row: of errors that are carried along, since for some an expert is chosen by a hair."""
        return error.typical / (self.factor * (self.rounding.typical + self.unit))


def unit(dtype: torch.dtype) -> float:
    """The unit in the last place of a dtype, relative."""
    return float(torch.finfo(dtype).eps)
