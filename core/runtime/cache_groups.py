"""A cache group: the layers whose paged KV caches look alike share one block table and one set of block ids."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CacheGroup:
    """Blocks of one group of layers.

    Args:
        num_blocks: block ids are 0 … num_blocks - 1.
        block_size: tokens in a block.
        window: how many tokens a query sees, itself included; None sees all before it.
    """

    num_blocks: int
    block_size: int
    window: int | None = None

    def first_needed(self, position: int) -> int:
        """Index of the first block that a query at ``position`` or later reads."""
        return 0 if self.window is None else max(0, position - self.window + 1) // self.block_size
