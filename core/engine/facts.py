"""What the host must know of an engine to schedule it, wherever its ranks run. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from bestiary.core.runtime.cache_groups import CacheGroup

if TYPE_CHECKING:
    from bestiary.core.engine.load import LoadedEngine


@dataclass(frozen=True, kw_only=True)
class EngineFacts:
    """Of one engine, the same on all its ranks.

    Args:
        max_num_tokens, max_batch_size, max_rows: the largest step: tokens, requests, rows of logits.
        prefix_caching: whether equal prefixes have equal keys.
    """

    cache_groups: tuple[CacheGroup, ...]
    vocab_size: int
    max_seq_len: int
    max_num_tokens: int
    max_batch_size: int
    max_rows: int
    prefix_caching: bool

    @classmethod
    def of(cls, engine: LoadedEngine) -> Self:
        """Of a loaded engine."""
        limits = engine.network.limits
        return cls(
            cache_groups=engine.cache_groups,
            vocab_size=engine.vocab_size,
            max_seq_len=engine.max_seq_len,
            max_num_tokens=limits.tokens,
            max_batch_size=limits.sequences,
            max_rows=limits.rows,
            prefix_caching=engine.prefix_caching,
        )

    def as_dict(self) -> dict[str, Any]:
        """For a message."""
        return {**asdict(self), "cache_groups": [asdict(group) for group in self.cache_groups]}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self:
        """From a message."""
        return cls(**{**found, "cache_groups": tuple(CacheGroup(**group) for group in found["cache_groups"])})
