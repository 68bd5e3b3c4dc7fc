"""The memory of the paged key-value caches. B blocks · S block size · K heads · D, E sizes of key and value."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from bestiary.core.errors import ConfigError
from bestiary.core.program.trace import cache_groups
from bestiary.core.runtime.cache_groups import CacheGroup
from bestiary.layers.cache import CacheSpec


def block_bytes(spec: CacheSpec, block_size: int, dtype: torch.dtype) -> int:
    """Bytes that one block takes in one layer."""
    return block_size * spec.kv_heads * (spec.k_size + spec.v_size) * dtype.itemsize


def plan_groups(
    caches: Mapping[str, CacheSpec],
    *,
    budget: int,
    block_size: int,
    dtype: torch.dtype,
    max_seq_len: int,
    max_batch_size: int,
    max_num_tokens: int,
) -> tuple[CacheGroup, ...]:
    """Divide a budget of bytes among the groups in the proportion of what a longest sequence takes of each.

    No group gets more than ``max_batch_size`` longest sequences can fill.

    Raises:
        ConfigError: the budget does not hold one sequence of ``max_seq_len``; with the arithmetic.
    """
    specs = cache_groups(dict(caches))
    if not specs:
        return ()
    layers = [sum(spec == other for other in caches.values()) for spec in specs]
    spans = [max_seq_len if spec.window is None else min(max_seq_len, spec.window + max_num_tokens) for spec in specs]
    blocks = [-(-span // block_size) + (0 if span == max_seq_len else 1) for span in spans]
    sizes = [count * block_bytes(spec, block_size, dtype) for count, spec in zip(layers, specs, strict=True)]
    one = sum(count * size for count, size in zip(blocks, sizes, strict=True)) + sum(sizes)  # and the scrap blocks
    if budget < one:
        raise ConfigError(
            "E-KV-MEMORY",
            "kv_cache_memory",
            f"does not hold one sequence of max_seq_len = {max_seq_len}",
            found=f"{budget:,} bytes",
            expected=f"at least {one:,} bytes ({' + '.join(f'{b} blocks × {s:,}' for b, s in zip(blocks, sizes, strict=True))})",
            hint="lower max_seq_len or give the cache more memory",
        )
    sequences = min(float(max_batch_size), (budget - sum(sizes)) / (one - sum(sizes)))
    return tuple(
        CacheGroup(num_blocks=int(count * sequences), block_size=block_size, window=spec.window)
        for count, spec in zip(blocks, specs, strict=True)
    )


class KVStore:
    """Keys ``[B + 1, S, K, D]`` and values ``[B + 1, S, K, E]`` of every layer; the last block is padding's.

    Args:
        caches: of this rank's layers, by path.
        group_of: the number of each one's group; ``groups`` are the whole model's.
    """

    def __init__(
        self,
        caches: Mapping[str, CacheSpec],
        group_of: Mapping[str, int],
        groups: tuple[CacheGroup, ...],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.groups = groups
        self.tensors: dict[str, Tensor] = {}
        for path, spec in caches.items():
            group = groups[group_of[path]]
            for name, size in (("k", spec.k_size), ("v", spec.v_size)):
                shape = (group.num_blocks + 1, group.block_size, spec.kv_heads, size)
                self.tensors[f"{name}.{path}"] = _zeros(shape, dtype, device)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that take memory only once they are touched: on the host a cache may be planned larger than what is used."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # numpy leaves the zeroing to the system's fresh pages; torch.zeros would write all of them.
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)
