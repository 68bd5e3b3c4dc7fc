"""How keys, or values, of few bits lie in a block of a paged cache, and what they take of it. No torch.

S block size · K key-value heads · D head size · C bytes of a head's codes.

A block is bytes: the codes ``[S, K, C]`` of all its tokens and heads, and behind them, at a multiple of 16, four bytes for
each token and head: an fp32 scale, or an fp16 scale and the fp16 minimum.
"""

from __future__ import annotations

from dataclasses import dataclass

#: What ``kv_dtype`` may be besides a dtype: symmetric int8, fp8 (e4m3), and int4 with a minimum, two codes a byte.
KINDS = ("int8", "fp8", "int4")
#: Bytes that a token's head takes beside its codes.
SCALE_BYTES = 4
#: Codes, scales and blocks begin at multiples of so many bytes, which kernels load at a time.
ALIGNMENT = 16


@dataclass(frozen=True)
class BlockFormat:
    """Of the blocks of one cache of keys, or of values.

    Args:
        kind: one of :data:`KINDS`.
        block_size: tokens in a block, S.
        heads: stored for each token, K.
        size: features of a head, D.
    """

    kind: str
    block_size: int
    heads: int
    size: int

    @property
    def code_bytes(self) -> int:
        """C; an odd head of int4 leaves its last four bits zero."""
        return -(-self.size // 2) if self.kind == "int4" else self.size

    @property
    def scales_at(self) -> int:
        """Where in a block the scales begin."""
        return _aligned(self.block_size * self.heads * self.code_bytes)

    @property
    def nbytes(self) -> int:
        """Of a block."""
        return _aligned(self.scales_at + self.block_size * self.heads * SCALE_BYTES)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
