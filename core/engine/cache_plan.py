"""How many blocks the cache groups of an engine get."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from bestiary.core import device as devices
from bestiary.core.engine.memory_cap import check_memory
from bestiary.core.engine.network import Network
from bestiary.core.engine.options import BuildOptions
from bestiary.core.ops.collective import Place
from bestiary.core.program.trace import cache_groups
from bestiary.core.runtime.cache_groups import CacheGroup
from bestiary.core.runtime.kv_store import plan_groups
from bestiary.layers.cache import CacheSpec


def plan_cache(
    network: Network, options: BuildOptions, memory: float | int, num_blocks: int | None, place: Place
) -> tuple[CacheGroup, ...]:
    """The model's cache groups with the same number of blocks on every rank: the least that one of them can hold."""
    program = network.program
    if num_blocks is not None:
        return tuple(CacheGroup(num_blocks, options.block_size, spec.window) for spec in program.groups)
    planned = _planned(network, options, program.caches, _budget(memory, network, place))
    held = {program.group_of[path]: planned[spec] for path, spec in program.caches.items()}
    counts = [
        # A stage without layers of a group has nothing to hold: it takes as many blocks as could ever be in use.
        held.get(number) or _planned(network, options, {"": spec}, sys.maxsize)[spec]
        for number, spec in enumerate(program.groups)
    ]
    least = place.least(counts, network.target.device)
    return tuple(
        CacheGroup(count, options.block_size, spec.window) for count, spec in zip(least, program.groups, strict=True)
    )


def _budget(memory: float | int, network: Network, place: Place) -> int:
    """Bytes for this rank's cache."""
    check_memory(memory)
    if memory > 1:
        return int(memory)
    device = network.target.device
    # Ranks on the processor share its memory; a GPU has one rank.
    return int(memory * devices.free_memory(device)) // (place.count if device.type == "cpu" else 1)


def _planned(
    network: Network, options: BuildOptions, caches: Mapping[str, CacheSpec], budget: int
) -> dict[CacheSpec, int]:
    """Blocks for each distinct spec of some caches."""
    planned = plan_groups(
        caches,
        budget=budget,
        block_size=options.block_size,
        dtype=network.geometry.kv_dtype,
        max_seq_len=network.max_seq_len,
        max_batch_size=options.max_batch_size,
        max_num_tokens=options.max_num_tokens,
    )
    return {spec: group.num_blocks for spec, group in zip(cache_groups(dict(caches)), planned, strict=True)}
