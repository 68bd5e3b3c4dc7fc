"""What a layer keeps of the past."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from bestiary.layers.shard import Column


@dataclass(frozen=True)
class CacheSpec:
    """A paged key-value cache of one layer; layers with equal specs share block tables.

    Args:
        kv_heads: heads stored for each token.
        k_size, v_size: features of a head's key and value.
        window: positions behind a token that are still read, itself included; None for all.
    """

    kv_heads: int
    k_size: int
    v_size: int
    window: int | None = None


class KVCache(nn.Module):
    """Declares a layer's cache; the runtime owns the memory and hands it out through the step."""

    def __init__(self, spec: CacheSpec) -> None:
        super().__init__()
        self.spec = spec
        self.shard = Column(spec.kv_heads)
