"""What one rank of a tensor-parallel test does; spawned processes need it in a module of its own."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist


def run_rank(rank: int, size: int, directory: str, tokens: list[int], port: int) -> None:
    """Load this rank's share of ``directory/engine``, run one step, save the logits to ``logits-RANK.pt``."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", rank=rank, world_size=size)
    from tiny import load, request, whole

    from bestiary.core.ops.collective import Place, Ranks
    from bestiary.core.plugins import PluginHost

    engine = load(
        Path(directory),
        PluginHost.load(),
        place=Place(tensor=Ranks(rank, size, dist.group.WORLD), group=dist.group.WORLD),
    )
    logits = engine.runner.forward(whole(request(tokens, [5, 2])))
    heads = {spec.kv_heads for spec in engine.network.program.caches.values()}
    torch.save({"logits": logits, "kv_heads": heads}, Path(directory) / f"logits-{rank}.pt")
    dist.destroy_process_group()
