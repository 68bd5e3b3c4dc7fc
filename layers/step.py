"""What one packed step hands to every layer. T tokens · N sequences · R rows with logits · P blocks of a sequence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from bestiary import ops
from bestiary.core.config import Rope
from bestiary.layers.cache import KVCache


@dataclass(frozen=True)
class LayerCache:
    """One layer's cache and its group's indices.

    k ``[B, S, K, D]``, v ``[B, S, K, E]``; slots ``[T]`` int64, −1 for padding; block_tables ``[N, P]`` int32.
    """

    k: Tensor
    v: Tensor
    slots: Tensor
    block_tables: Tensor


@dataclass(frozen=True)
class Step:
    """The packed tokens of all requests and where their past lies. An argument of every layer, never a global.

    Args:
        tokens: ids ``[T]`` int64.
        positions: ``[T]`` int64, counted from 0 within a request.
        lengths: ``[T]`` int64: length of a token's context when it was first computed (prompt length, or position + 1).
        logit_rows: ``[R]`` int64, the tokens whose logits are wanted.
        query_starts: ``[N + 1]`` int32, sequence n's tokens are ``query_starts[n] … query_starts[n + 1]``.
        kv_lengths: ``[N]`` int32, tokens of each sequence after this step.
        caches: the memory of each :class:`KVCache` of the model.
    """

    tokens: Tensor
    positions: Tensor
    lengths: Tensor
    logit_rows: Tensor
    query_starts: Tensor
    kv_lengths: Tensor
    caches: Mapping[KVCache, LayerCache]
    _tables: dict[tuple[Rope, int], Tensor] = field(default_factory=dict, repr=False)

    def cache(self, declared: KVCache) -> LayerCache:
        """The memory behind a layer's declared cache."""
        return self.caches[declared]

    def rotary(self, rope: Rope, size: int) -> Tensor:
        """Cosines and sines ``[T, size]`` of this step's positions, computed once for all layers that ask alike."""
        if (rope, size) not in self._tables:
            self._tables[rope, size] = ops.rotary_table(self.positions, self.lengths, rope, size)
        return self._tables[rope, size]
