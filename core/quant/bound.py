"""How far quantization moves logits: what a method's ``bound`` is held against. T tokens · V vocabulary."""

from __future__ import annotations

from torch import Tensor


def relative(found: Tensor, exact: Tensor) -> Tensor:
    """``rms(found - exact) / rms(exact - mean)`` of each token's logits, ``[T, V]`` → ``[T]``.

    The median over tokens is what bounds are for: where a router sends a token to another expert, which a small error
    may do, its logits say nothing of the weights.
    """
    size = (exact - exact.mean(-1, keepdim=True)).square().mean(-1)
    return ((found - exact).square().mean(-1) / size).sqrt()
