"""What the device can do at most, measured: bytes a second through memory, and products a second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from bestiary.core import device as devices

_REPEATS = 4
# A product is large enough when it takes so many seconds (the next would take eight times as many), or has this width.
_LONG, _WIDEST, _NARROWEST = 0.008, 8192, 256


@dataclass(frozen=True)
class Roofs:
    """The best of several runs of torch's own copy, sum and product.

    Args:
        copy: bytes a second of a copy, read and written bytes together.
        read: bytes a second of a sum over a large tensor.
        flops: of square products in ``dtype``, a second.
    """

    copy: float
    read: float
    flops: float
    dtype: str

    @property
    def bandwidth(self) -> float:
        """Bytes a second, by whichever way is faster."""
        return max(self.copy, self.read)

    def least_seconds(self, flops: int | None, nbytes: int) -> float:
        """What a call takes that touches the nearer of the two roofs."""
        return max(nbytes / self.bandwidth, (flops or 0) / self.flops)


def measure(device: torch.device, dtype: torch.dtype) -> Roofs:
    """Measure a device's roofs, in less than a second.

    Args:
        dtype: what products are computed in.
    """
    size = min(devices.beyond_caches(device), devices.free_memory(device) // 8) // 4
    source, target = torch.ones(size, device=device), torch.zeros(size, device=device)
    copied = _best(lambda: target.copy_(source), device)
    summed = _best(source.sum, device)
    name = str(dtype).removeprefix("torch.")
    return Roofs(2 * source.nbytes / copied, source.nbytes / summed, _product(device, dtype), name)


def _product(device: torch.device, dtype: torch.dtype) -> float:
    """The best rate of square products, each twice as wide as the one before, until one takes long."""
    best, width = 0.0, _NARROWEST
    while True:
        left, right = (torch.ones(width, width, device=device, dtype=dtype) for _ in range(2))
        seconds = _best(partial(torch.nn.functional.linear, left, right), device, repeats=3)
        best = max(best, 2 * width**3 / seconds)
        if seconds >= _LONG or width >= _WIDEST:
            return best
        width *= 2


def _best(run: Callable[[], Any], device: torch.device, repeats: int = _REPEATS) -> float:
    run()  # what is made once
    return min(devices.timed(run, device) for _ in range(repeats))
