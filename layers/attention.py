"""Attention with grouped key-value heads and rotary positions. T tokens · H heads · K key-value heads · D head size."""

from __future__ import annotations

from torch import Tensor, nn

from bestiary import ops
from bestiary.core.config import Rope
from bestiary.layers.cache import CacheSpec, KVCache
from bestiary.layers.linear import Linear
from bestiary.layers.shard import Column, Row
from bestiary.layers.step import Step


class Attention(nn.Module):
    """Multi-head, grouped-query or multi-query attention: ``[T, hidden]`` → ``[T, hidden]``.

    Args:
        hidden: features in and out.
        heads, kv_heads: query heads and key-value heads; the first a multiple of the second.
        head_dim: D, which need not be hidden / heads.
        rope: rotary embedding, None for none.
        bias: biases of q, k and v; ``output_bias`` of o (as ``bias`` unless said).
        window: positions behind a token that it sees, itself included; None for all.
        scale: of the scores; D^−½ unless said.
        q_norm, k_norm: applied to each head's queries and keys before the rotation.
    """

    def __init__(
        self,
        hidden: int,
        *,
        heads: int,
        kv_heads: int,
        head_dim: int,
        rope: Rope | None,
        bias: bool = False,
        output_bias: bool | None = None,
        window: int | None = None,
        scale: float | None = None,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.q = Linear(hidden, heads * head_dim, bias=bias, shard=Column(heads))
        self.k = Linear(hidden, kv_heads * head_dim, bias=bias, shard=Column(kv_heads))
        self.v = Linear(hidden, kv_heads * head_dim, bias=bias, shard=Column(kv_heads))
        self.o = Linear(heads * head_dim, hidden, bias=bias if output_bias is None else output_bias, shard=Row(heads))
        self.q_norm, self.k_norm = q_norm, k_norm
        self.cache = KVCache(CacheSpec(kv_heads, head_dim, head_dim, window))
        self.head_dim, self.rope, self.window = head_dim, rope, window
        self.rotated = rope.rotated(head_dim) if rope else 0
        self.scale = head_dim**-0.5 if scale is None else scale

    def forward(self, x: Tensor, step: Step) -> Tensor:
        # The number of heads is left open (−1): a rank of a tensor-parallel engine has fewer.
        q = self.q(x).unflatten(-1, (-1, self.head_dim))  # [T, H, D]
        k = self.k(x).unflatten(-1, (-1, self.head_dim))  # [T, K, D]
        v = self.v(x).unflatten(-1, (-1, self.head_dim))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rope is not None:
            table = step.rotary(self.rope, self.rotated)
            q, k = ops.rope(q, table), ops.rope(k, table)
        cache = step.cache(self.cache)
        ops.kv_write(k, v, cache.k, cache.v, cache.slots)
        mixed = ops.paged_attention(
            q, cache.k, cache.v, cache.block_tables, step.query_starts, step.kv_lengths, self.scale, self.window
        )
        return self.o(mixed.flatten(-2))
