"""What attention reads of a paged cache, however it is stored. n blocks · S block size · K key-value heads · D head size."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from bestiary.core.kv_format import BlockFormat
from bestiary.core.ops.kv_blocks import codes_of, dequantize, numbers_of, scales_of


class Pages(Protocol):
    """A cache of keys, or of values."""

    @property
    def block_size(self) -> int:
        """S."""

    @property
    def heads(self) -> int:
        """K."""

    @property
    def size(self) -> int:
        """D."""

    def blocks(self, numbers: Tensor) -> Tensor:
        """A copy of blocks ``[n]``: ``[n, S, K, D]``."""

    def entries(self, slots: Tensor) -> Tensor:
        """A copy of slots ``[…]``, none of them padding's: ``[…, K, D]``."""


class Elements:
    """A cache ``[B, S, K, D]``, read as it is."""

    def __init__(self, cache: Tensor) -> None:
        self._cache = cache
        _, self.block_size, self.heads, self.size = cache.shape

    def blocks(self, numbers: Tensor) -> Tensor:
        return self._cache.index_select(0, numbers)

    def entries(self, slots: Tensor) -> Tensor:
        return self._cache.view(-1, self.heads, self.size)[slots]


class Quantized:
    """A cache of codes and scales, ``[B, bytes]`` uint8, read in fp32: only what is asked for is made."""

    def __init__(self, cache: Tensor, form: BlockFormat) -> None:
        self._cache, self._form = cache, form
        self.block_size, self.heads, self.size = form.block_size, form.heads, form.size

    def blocks(self, numbers: Tensor) -> Tensor:
        return numbers_of(self._cache.index_select(0, numbers), self._form)

    def entries(self, slots: Tensor) -> Tensor:
        places = slots // self.block_size, slots % self.block_size
        codes, scales = codes_of(self._cache, self._form)[places], scales_of(self._cache, self._form)[places]
        return dequantize(codes, scales, self._form.kind, self.size)
