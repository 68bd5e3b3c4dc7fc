"""Fixed scales for a key-value cache of few bits, from the keys and values that a text gives. K key-value heads · D head size."""

from __future__ import annotations

import torch
from torch import Tensor

from bestiary.core.errors import DataError
from bestiary.core.ops.kv_blocks import LARGEST

#: int4's codes are −8 … 7 steps from zero where its scale is fixed.
_OF_FOUR_BITS = 7.0


class HeadRanges:
    """The largest number that each head of a cache's keys, or values, has shown."""

    def __init__(self) -> None:
        self.largest: Tensor | None = None

    def observe(self, x: Tensor) -> None:
        """Keys as they are stored (after their rotation), or values: ``[…, K, D]``."""
        found = x.detach().float().abs().amax(-1).flatten(0, -2).amax(0)
        self.largest = found if self.largest is None else torch.maximum(self.largest, found)

    def scales(self, kind: str, path: str) -> Tensor:
        """Each head's scale ``[K]`` float32, so that the largest number is the largest code; of a head that was always zero, 1.

        Args:
            kind: one of :data:`~bestiary.core.kv_format.KINDS`.
            path: of the cache, for errors.

        Raises:
            DataError: nothing was observed, or a number was not finite.
        """
        if self.largest is None or not self.largest.isfinite().all():
            problem = (
                "has shown no keys and values" if self.largest is None else "has shown numbers that are not finite"
            )
            raise DataError("E-QUANT-CALIBRATION", f"cache {path}", problem, hint="calibrate on another text")
        return torch.where(self.largest > 0, self.largest / LARGEST.get(kind, _OF_FOUR_BITS), 1.0)
