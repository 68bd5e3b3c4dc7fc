"""What one rank of a divided engine does in a test; spawned processes need it in a module of its own."""

from __future__ import annotations

import os
from pathlib import Path

import torch


def run_rank(rank: int, tensor: int, stages: int, directory: str, tokens: list[int]) -> None:
    """Load this rank's share of ``directory/engine``, run one step, save what it has to ``result-RANK.pt``."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    from tiny import load, whole

    from bestiary.core.plugins import PluginHost
    from bestiary.core.runtime.rank_main import join, leave

    place = join(rank, tensor, stages, "gloo", directory)
    # Less memory from rank to rank: all must take what the last can hold.
    engine = load(Path(directory), PluginHost.load(), place=place, kv_cache_memory=2**22 // (1 + 2 * rank))
    outputs = engine.runner.forward(whole(tokens, [5, 2]))
    caches = engine.network.program.caches
    result = {
        "logits": outputs.get("logits"),
        "kv_heads": {spec.kv_heads for spec in caches.values()},
        "layers": len(caches),
        "blocks": [group.num_blocks for group in engine.cache_groups],
    }
    torch.save(result, Path(directory) / f"result-{rank}.pt")
    leave(place)
