"""The memory of the paged key-value caches. B blocks · S block size · K heads · D, E sizes of key and value.

A dtype is torch's, or a kind of :data:`~bestiary.core.kv_format.KINDS`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bestiary.core.errors import ConfigError
from bestiary.core.ops.kv_blocks import CacheDtype, block_shape, element
from bestiary.core.program.trace import cache_groups
from bestiary.core.runtime.cache_groups import CacheGroup
from bestiary.layers.cache import CacheSpec


def block_bytes(spec: CacheSpec, block_size: int, dtype: CacheDtype) -> int:
    """Bytes that one block takes in one layer."""
    shapes = (block_shape(dtype, block_size, spec.kv_heads, size) for size in (spec.k_size, spec.v_size))
    return sum(math.prod(shape) for shape in shapes) * element(dtype).itemsize


@dataclass(frozen=True)
class GroupDemand:
    """What one sequence of the longest length takes of a cache group.

    Attributes:
        blocks: that it holds at a time.
        block_bytes: of one block in all of the group's layers.
        window: of the group's layers, None without one.
    """

    blocks: int
    block_bytes: int
    window: int | None

    def nbytes(self, sequences: int) -> int:
        """Bytes of the group for so many longest sequences; one block more belongs to padding."""
        return (self.blocks * sequences + 1) * self.block_bytes


def demands(
    caches: Mapping[str, CacheSpec], *, block_size: int, dtype: CacheDtype, max_seq_len: int, max_num_tokens: int
) -> tuple[GroupDemand, ...]:
    """Per cache group, what a sequence of ``max_seq_len`` takes; a window keeps what it shows and one step's chunk."""
    found = []
    for spec in cache_groups(dict(caches)):
        layers = sum(spec == other for other in caches.values())
        span = max_seq_len if spec.window is None else min(max_seq_len, spec.window + max_num_tokens)
        blocks = -(-span // block_size) + (0 if span == max_seq_len else 1)
        found.append(GroupDemand(blocks, layers * block_bytes(spec, block_size, dtype), spec.window))
    return tuple(found)


def plan_groups(
    caches: Mapping[str, CacheSpec],
    *,
    budget: int,
    block_size: int,
    dtype: CacheDtype,
    max_seq_len: int,
    max_batch_size: int,
    max_num_tokens: int,
) -> tuple[CacheGroup, ...]:
    """Divide a budget of bytes among the groups in the proportion of what a longest sequence takes of each.

    No group gets more than ``max_batch_size`` longest sequences can fill.

    Raises:
        ConfigError: the budget does not hold one sequence of ``max_seq_len``; with the arithmetic.
    """
    needs = demands(caches, block_size=block_size, dtype=dtype, max_seq_len=max_seq_len, max_num_tokens=max_num_tokens)
    if not needs:
        return ()
    scrap = sum(need.block_bytes for need in needs)
    one = sum(need.nbytes(1) for need in needs)
    if budget < one:
        raise ConfigError(
            "E-KV-MEMORY",
            "kv_cache_memory",
            f"does not hold one sequence of max_seq_len = {max_seq_len}",
            found=f"{budget:,} bytes",
            expected=f"at least {one:,} bytes ({' + '.join(f'{n.blocks} blocks × {n.block_bytes:,}' for n in needs)})",
            hint="lower max_seq_len or give the cache more memory",
        )
    sequences = min(float(max_batch_size), (budget - scrap) / (one - scrap))
    return tuple(
        CacheGroup(num_blocks=int(need.blocks * sequences), block_size=block_size, window=need.window) for need in needs
    )


def store_bytes(caches: Mapping[str, CacheSpec], groups: tuple[CacheGroup, ...], dtype: CacheDtype) -> int:
    """Bytes of a :class:`KVStore` with these groups."""
    specs = cache_groups(dict(caches))
    of_group = [groups[specs.index(spec)] for spec in caches.values()]
    sizes = [block_bytes(spec, g.block_size, dtype) for spec, g in zip(caches.values(), of_group, strict=True)]
    return sum((group.num_blocks + 1) * size for group, size in zip(of_group, sizes, strict=True))


class KVStore:
    """Keys ``[B + 1, S, K, D]`` and values ``[B + 1, S, K, E]`` of every layer, or ``[B + 1, bytes]`` of few bits; the last
    block is padding's.

    Args:
        caches: of this rank's layers, by path.
        group_of: the number of each one's group; ``groups`` are the whole model's.
    """

    def __init__(
        self,
        caches: Mapping[str, CacheSpec],
        group_of: Mapping[str, int],
        groups: tuple[CacheGroup, ...],
        dtype: CacheDtype,
        device: torch.device,
    ) -> None:
        self.groups = groups
        self.tensors: dict[str, Tensor] = {}
        self._members: list[list[Tensor]] = [[] for _ in groups]
        for path, spec in caches.items():
            group = groups[group_of[path]]
            for name, size in (("k", spec.k_size), ("v", spec.v_size)):
                shape = (group.num_blocks + 1, *block_shape(dtype, group.block_size, spec.kv_heads, size))
                self.tensors[f"{name}.{path}"] = made = _zeros(shape, element(dtype), device)
                self._members[group_of[path]].append(made)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def copy(self, group: int, sources: Tensor, targets: Tensor) -> None:
        """The blocks ``targets`` get the contents that ``sources`` have now, in every layer of a group."""
        for tensor in self._members[group]:
            tensor.index_copy_(0, targets, tensor.index_select(0, sources))

    def scrub(self, group: int, blocks: Tensor) -> None:
        """Zeros in place of what the blocks hold, in every layer of a group."""
        for tensor in self._members[group]:
            tensor.index_fill_(0, blocks, 0)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that take memory only once they are touched: on the host a cache may be planned larger than what is used."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # numpy leaves the zeroing to the system's fresh pages; torch.zeros would write all of them.
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)
