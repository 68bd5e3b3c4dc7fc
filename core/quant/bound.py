"""How far quantization moves logits, and how far errors of a known size do: what a method's ``bound`` is held against.

Half a percent in each product may be one percent of the logits or twenty: it depends on depth, norms, rotation and routers,
not on the method. So a method's bound speaks of products, and the model itself tells what that means for its logits, by
weights that have normally distributed errors of this size.
"""

from __future__ import annotations

import zlib
from typing import Final

import torch
from torch import Tensor

#: A method may do so many times as much harm as errors without any system. The zoo's ratios lie between 0.4 and 1.
ALLOWED: Final = 2.0


def relative(found: Tensor, exact: Tensor) -> Tensor:
    """``rms(found - exact) / rms(exact - mean)`` of each token's logits, ``[T, V]`` → ``[T]``.

    The median over tokens is what bounds are for: where a router sends a token to another expert, which a small error
    may do, its logits say nothing of the weights.
    """
    size = (exact - exact.mean(-1, keepdim=True)).square().mean(-1)
    return ((found - exact).square().mean(-1) / size).sqrt()


def noisy(weight: Tensor, size: float) -> Tensor:
    """A weight ``[…, K]`` with errors of ``size`` times the root mean square of its rows, the same ones whenever it is made; fp32."""
    wide = weight.float()
    seed = zlib.crc32(wide.contiguous().cpu().numpy().tobytes())  # of each weight its own
    errors = torch.randn(wide.shape, generator=torch.Generator().manual_seed(seed))
    return wide + size * wide.square().mean(-1, keepdim=True).sqrt() * errors.to(wide.device)
