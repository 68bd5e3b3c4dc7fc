"""GPTQ (Frantar et al. 2022): columns are rounded one by one, and those left make up for each one's error.

N output features · K input features · G groups of these.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import torch
from torch import Tensor

from bestiary.core.errors import DataError
from bestiary.core.quant.rounding import Codes, Grid, Ranges, decode, encode, grouped, ranges, stored

BLOCK: Final = 128  # columns whose updates to the rest are made in one product
_MOST_DAMPING: Final = 1.0


class Factor(NamedTuple):
    """What GPTQ needs of a weight's inputs; the same for all weights that read them.

    Args:
        upper: ``[K, K]``, U with UᵀU the inverse of the damped Hessian, columns in the order of rounding.
        order: ``[K]``, the columns by falling diagonal of the Hessian; None: as they are.
    """

    upper: Tensor
    order: Tensor | None


def factorize(hessian: Tensor, damping: float = 0.01, *, order: bool = False) -> Factor:
    """Cholesky factor of the inverse of ``H + damping · mean(diag H) · I``, in H's dtype.

    A column that the calibration never saw used (a zero on the diagonal) is rounded to nearest. Where the matrix is not
    positive definite in its precision, damping is raised tenfold, to 1 at most.

    Args:
        hessian: ``[K, K]``, mean of x xᵀ.
        order: round the columns with the largest inputs first ("act-order").

    Raises:
        DataError: the Hessian is no mean of x xᵀ: it has NaN or infinities, or is not positive.
    """
    diagonal = hessian.diagonal()
    if not bool(torch.isfinite(diagonal).all()) or bool((diagonal < 0).any()):
        raise _not_positive(damping)
    by = diagonal.argsort(descending=True, stable=True) if order else None
    matrix = hessian.clone() if by is None else hessian[by][:, by]
    own = matrix.diagonal()
    mean = float(own.mean())
    own[own == 0] = mean or 1.0
    while True:
        damped = matrix.clone()
        damped.diagonal().add_(damping * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not failed and bool(torch.isfinite(upper).all()):
            return Factor(upper, by)
        if damping >= _MOST_DAMPING:
            raise _not_positive(damping)
        damping = min(_MOST_DAMPING, max(damping * 10, 1e-6))


def gptq(weight: Tensor, factor: Factor, grid: Grid) -> Codes:
    """The weight's codes, ``[N, K]`` in the columns' own order.

    A group's scale is chosen when its first column is reached, from its weights as they are then. With an order, groups are
    still those of neighbouring columns, whose scales are chosen from the weights as given ("static groups"): the layout is
    that of every quantizer, and no column needs a group's number.

    Args:
        weight: ``[N, K]``, finite.
    """
    columns, width = weight.shape[1], grid.width(weight.shape[1])
    rows = weight.float().t().contiguous()  # a column of the weight is a row here, to be read at a stretch
    found = ranges(grouped(weight.float(), width), grid)
    work = rows if factor.order is None else rows[factor.order]
    work = work.clone()
    upper = factor.upper.float()
    codes = torch.empty_like(work)
    column = torch.arange(columns).tolist() if factor.order is None else factor.order.tolist()
    blocks = _blocks(columns, width) if factor.order is None else _blocks(columns, BLOCK)
    for start, stop in blocks:
        block, lost = work[start:stop], torch.empty_like(work[start:stop])
        for i in range(start, stop):
            group = column[i] // width
            if factor.order is None and i % width == 0:
                _choose(found, group, work[i : min(i + width, columns)].t(), grid)
            place = Ranges(found.scale[:, group], None if found.zero is None else found.zero[:, group])
            codes[i] = encode(work[i], place, grid)
            error = (work[i] - decode(codes[i], place, grid)) / upper[i, i]
            lost[i - start] = error
            block[i - start + 1 :].addr_(upper[i, i + 1 : stop], error, alpha=-1)
        work[stop:].addmm_(upper[start:stop, stop:].t(), lost, alpha=-1)
    if factor.order is not None:
        codes = torch.empty_like(codes).index_copy_(0, factor.order, codes)
    return stored(codes.t().contiguous(), found, grid)


def _choose(found: Ranges, group: int, pieces: Tensor, grid: Grid) -> None:
    """Write one group's ranges, of its columns ``[N, width]`` as they are by now."""
    now = ranges(pieces, grid)
    found.scale[:, group] = now.scale
    if found.zero is not None and now.zero is not None:
        found.zero[:, group] = now.zero


def _blocks(columns: int, width: int) -> Iterator[tuple[int, int]]:
    """Ranges of columns, about ``BLOCK`` of them: of whole groups, or within one. A group's columns must all be up to date
    when its first is rounded."""
    size = max(1, BLOCK // width) * width
    for first in range(0, columns, size):
        last = min(first + size, columns)
        for start in range(first, last, BLOCK):
            yield start, min(start + BLOCK, last)


def _not_positive(damping: float) -> DataError:
    return DataError(
        "E-QUANT-HESSIAN",
        "calibration",
        "what the layer read can't be used: the mean of x xᵀ is not positive definite, or not finite",
        found=f"damping {damping:g}",
        hint="calibrate with more text, or check the model with bestiary quality",
    )
