"""How far a tensor lies from another, and how far it may."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

#: How many times what one rounding makes is still taken for rounding, by the dtype: in float32 sums of thousands of terms in
#: another order make more than their terms' own rounding; products of 16-bit numbers are summed in float32.
FACTORS = {torch.float32: 16.0, torch.float64: 16.0, torch.bfloat16: 2.0, torch.float16: 2.0}
#: So many standard errors of the tokens' mean a scale may be off. In 15,800 readings of right models the farthest was 15 off where
#: all tokens share a weight's rounding, for which the norm's share allows: together 0.32 of what is allowed at most.
_DEVIATIONS = 6.0
#: So many times what the ops' references lose in a storage of few bits a kernel may lose there: other numbers fall on other codes.
_LOSS = 1.5
#: Fewer tokens than this say nothing of how much a scale differs from token to token.
_TOKENS = 10


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


@dataclass(frozen=True)
class Scale:
    """By what factor all of a tensor differs from its reference: rounding has no direction, so hardly any of it adds up to one.

    Args:
        factor: the projection of the tensor on the reference, ``⟨a, b⟩ / ⟨b, b⟩``.
        share: how much of an error of that norm may lie along the reference, if features are rounded independently and alike
            at all tokens: ``√Σ fᵢ² / Σ fᵢ`` of the features' squares; 1 where one feature is all.
        scatter: how far the factor may be off since it differs from token to token; infinite where too few tell.
    """

    factor: float = 1.0
    share: float = 1.0
    scatter: float = math.inf


def scales(found: Tensor, wanted: Tensor, parts: Mapping[str, slice]) -> dict[str, Scale]:
    """The scale of each part of a tensor's tokens; what a token's factor differs by is told from all of them.

    Args:
        found, wanted: ``[tokens, …]``; of other sizes, or not finite: nothing is said of a scale.
    """
    right = wanted.float().reshape(len(wanted), -1)
    if found.numel() != wanted.numel() or not right.numel():
        return dict.fromkeys(parts, Scale())
    along = ((found.float().reshape(right.shape) - right) * right).sum(-1, dtype=torch.float64)
    squares = right.square().sum(-1, dtype=torch.float64)
    if not (along.isfinite().all() and squares.isfinite().all()):
        return dict.fromkeys(parts, Scale())
    rows = torch.where(squares > 0, along / squares, 0.0)
    spread = sum(float((rows[part] - rows[part].mean()).square().sum()) for part in parts.values())
    freedom = len(rows) - len(parts)
    deviation = math.sqrt(spread / freedom) if len(rows) >= _TOKENS else math.inf
    made = {}
    for kind, part in parts.items():
        size = float(squares[part].sum())
        if not size:
            made[kind] = Scale()
            continue
        features = right[part].square().sum(0, dtype=torch.float64)
        share, tokens = (float(_norm(one) / one.sum()) for one in (features, squares[part]))
        made[kind] = Scale(1 + float(along[part].sum()) / size, share, _DEVIATIONS * deviation * tokens)
    return made


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
        lost: what the ops' references lose of it where something is stored in few bits, if that is to be allowed.
        shifted: how far their scale is from 1 there.
    """

    factor: float
    unit: float
    rounding: Error
    lost: Error | None = None
    shifted: float = 0.0

    @property
    def relative(self) -> float:
        """Of the norm of the difference over the norm of the reference: the rounding of what it is made of and its own."""
        allowed = self.factor * (self.rounding.relative + self.unit)
        return allowed + _LOSS * self.lost.relative if self.lost else allowed

    def excess(self, error: Error) -> float:
        """An error over what is allowed, by the norm and by the largest difference: above 1 is no rounding."""
        largest = self.factor * (self.rounding.largest + self.unit * error.scale)
        if self.lost:
            largest += _LOSS * self.lost.largest
        by_norm = error.relative / self.relative
        by_largest = error.largest / largest if largest else math.inf if error.largest else 0.0
        return max(by_norm, by_largest)

    def off_scale(self, scale: Scale) -> float:
        """How far a scale may be from 1: the features' share of the error's norm, what tokens differ by, and what is lost."""
        return self.relative * scale.share + scale.scatter + _LOSS * self.shifted

    def scale_excess(self, scale: Scale) -> float:
        """How far a scale is from 1 over what is allowed."""
        return abs(scale.factor - 1) / self.off_scale(scale)

    def fits(self, one: Tensor, other: Tensor, parts: Mapping[str, slice] | None = None) -> bool:
        """Whether a tensor is the other but for rounding.

        Args:
            parts: of its tokens, if they are those of a prompt.
        """
        found = scales(one, other, parts or {"all": slice(None)}).values()
        return self.excess(Error.of(one, other)) <= 1 and all(self.scale_excess(scale) <= 1 for scale in found)

    def typical_excess(self, error: Error) -> float:
        """The same of a typical row: of errors that are carried along, since for some an expert is chosen by a hair."""
        return error.typical / (self.factor * (self.rounding.typical + self.unit))


def unit(dtype: torch.dtype) -> float:
    """The unit in the last place of a dtype, relative."""
    return float(torch.finfo(dtype).eps)
