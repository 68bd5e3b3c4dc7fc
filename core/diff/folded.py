"""The scales that a calibration moved from a value into the weights that read it: what is to be undone before weights are compared.

N rows · K columns of a weight ``[…, N, K]``; in front of them may be experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bestiary.core.checkpoint.parameters import parse_config
from bestiary.core.diff.open import Ours
from bestiary.core.engine.network import make_module
from bestiary.core.program.trace import trace
from bestiary.core.quant.segments import segments
from bestiary.core.quant.sharing import Shared, shared

#: Logarithm of a ratio below which scales are the same but for rounding.
_ALIKE = 0.2
#: Gives a parameter in fp32: as it is read, or as it was before it was quantized.
Parameter = Callable[[str], Tensor]


@dataclass(frozen=True)
class Folded:
    """Factors of a weight's columns and rows, ``[…, K]`` and ``[…, N]``; None: 1."""

    columns: Tensor | None = None
    rows: Tensor | None = None

    def on(self, weight: Tensor) -> Tensor:
        """The plain weight with them."""
        made = weight if self.columns is None else weight * self.columns.unsqueeze(-2)
        return made if self.rows is None else made * self.rows.unsqueeze(-1)


def folded(ours: Ours, found: Parameter, plain: Parameter) -> dict[str, Folded]:
    """By parameter, the scales that were moved into it, read off the weights themselves."""
    made: dict[str, Folded] = {}
    for one in _groups(ours):
        source = one.source
        if source is None:
            continue
        if source.axis == -1:
            scale = plain(source.weight) / found(source.weight)
        else:
            before = made.get(source.weight, Folded())
            reader = one.readers[0]
            scale = _agreed(
                _factor(found(reader), made.get(reader, Folded()).on(plain(reader)), -2),
                1 / _factor(found(source.weight), before.on(plain(source.weight)), -1),
            )
            made[source.weight] = Folded(before.columns, 1 / scale)
        for reader in one.readers:
            made[reader] = Folded(scale, made.get(reader, Folded()).rows)
    return made


def _agreed(columns: Tensor, rows: Tensor) -> Tensor:
    """A reader's columns and its source's rows say a scale each. Where all differ, one of the weights is wrong as a whole: by the
    scales nearer to 1 it will show. Some columns are no storage's block, so where some differ rows of the source are wrong."""
    alike = bool((columns / rows).log().median().abs() < _ALIKE)
    return columns if alike or columns.log().median().abs() <= rows.log().median().abs() else rows


def _factor(found: Tensor, plain: Tensor, axis: int) -> Tensor:
    """By what an axis of a weight was multiplied: the median over its larger numbers, which a few that are wrong don't move."""
    size = plain.abs()
    large = (size >= size.mean(axis, keepdim=True)) & (size > 0)
    factor = (found / plain).where(large, torch.nan).nanmedian(axis).values
    return factor.where(factor > 0, 1.0)


def _groups(ours: Ours) -> Iterator[Shared]:
    manifest = ours.manifest.checkpoint
    model = ours.host.model(manifest.model)
    module = make_module(model, parse_config(model, manifest.config))
    program = trace(module)
    for part in segments(program, module):
        yield from shared(program, part.instructions)
