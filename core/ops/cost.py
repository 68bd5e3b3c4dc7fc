"""What a call of an op takes at least, whatever kernel runs it: arithmetic, and bytes that go through memory."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Cost:
    """Of one call.

    Args:
        flops: additions, multiplications and evaluated functions, each counted as one; a product of ``[T, K]`` with ``[K, N]``
            takes ``2 · T · K · N``.
        bytes: read and written once each, of the tensors' parts that the call needs.
    """

    flops: int
    bytes: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)


def nbytes(*tensors: Tensor | None) -> int:
    """Bytes of all elements; a view counts for what it shows."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)
