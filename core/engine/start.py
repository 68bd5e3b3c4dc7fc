"""From a loaded engine to a loop that takes requests."""

from __future__ import annotations

from bestiary.core.engine.load import LoadedEngine
from bestiary.core.guides import processors
from bestiary.core.plugins import PluginHost
from bestiary.core.runtime.in_process import InProcess
from bestiary.core.runtime.loop import EngineLoop
from bestiary.core.runtime.scheduler import Scheduler
from bestiary.core.runtime.worker import Worker


def start(
    engine: LoadedEngine,
    host: PluginHost,
    *,
    prefix_caching: bool = True,
    capacity: str = "no-evict",
    order: str = "first-come",
    overlaps: bool | None = None,
) -> EngineLoop:
    """A loop over the engine's one rank, in this process.

    Args:
        prefix_caching: reuse keys and values of equal prompt beginnings, if the engine's can be.
        capacity, order: the scheduler's policies, by name.
        overlaps: launch steps before the results of the last are read; None: where the device works beside the host.

    Raises:
        ConfigError: there is no such policy.
    """
    limits = engine.network.limits
    scheduler = Scheduler(
        engine.cache_groups,
        max_batch_size=limits.sequences,
        max_num_tokens=limits.tokens,
        max_seq_len=engine.max_seq_len,
        max_rows=limits.rows,
        prefix_caching=prefix_caching and engine.prefix_caching,
        capacity=capacity,
        order=order,
    )
    executor = InProcess(Worker(engine.runner, processors(host)), engine.network.target.device, overlaps=overlaps)
    return EngineLoop(executor, scheduler, vocab_size=engine.vocab_size)
