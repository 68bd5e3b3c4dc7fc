"""Sets of tokens as packed bits, on the host: bit ``token % 32`` of word ``token // 32``. Knows no torch."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

Bitmask = NDArray[np.int32]


def words(vocab_size: int) -> int:
    """How many words a mask of so many tokens has."""
    return -(-vocab_size // 32)


def bitmask(tokens: Collection[int], vocab_size: int) -> Bitmask:
    """[ceil(V / 32)] int32 with the bits of ``tokens`` set."""
    ids = np.fromiter(tokens, dtype=np.int64, count=len(tokens))
    mask = np.zeros(words(vocab_size), dtype=np.uint32)
    np.bitwise_or.at(mask, ids // 32, np.left_shift(np.uint32(1), (ids % 32).astype(np.uint32)))
    return mask.view(np.int32)
