"""From an engine to a loop that takes requests: in this process, or over ranks in processes of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bestiary.core.engine.facts import EngineFacts
from bestiary.core.engine.load import LoadedEngine
from bestiary.core.guides import processors
from bestiary.core.plugins import PluginHost
from bestiary.core.runtime.executor import Executor
from bestiary.core.runtime.in_process import InProcess
from bestiary.core.runtime.loop import EngineLoop
from bestiary.core.runtime.ranks import RankExecutor
from bestiary.core.runtime.scheduler import Scheduler
from bestiary.core.runtime.worker import Worker


def start(
    facts: EngineFacts,
    executor: Executor,
    *,
    prefix_caching: bool = True,
    capacity: str = "no-evict",
    order: str = "first-come",
) -> EngineLoop:
    """A loop over an executor.

    Args:
        prefix_caching: reuse keys and values of equal prompt beginnings, if the engine's can be.
        capacity, order: the scheduler's policies, by name.

    Raises:
        ConfigError: there is no such policy.
    """
    scheduler = Scheduler(
        facts.cache_groups,
        max_batch_size=facts.max_batch_size,
        max_num_tokens=facts.max_num_tokens,
        max_seq_len=facts.max_seq_len,
        max_rows=facts.max_rows,
        prefix_caching=prefix_caching and facts.prefix_caching,
        capacity=capacity,
        order=order,
    )
    return EngineLoop(executor, scheduler, vocab_size=facts.vocab_size)


def in_process(engine: LoadedEngine, host: PluginHost, *, overlaps: bool | None = None) -> InProcess:
    """The engine's one rank, in this process.

    Args:
        overlaps: launch steps before the results of the last are read; None: where the device works beside the host.
    """
    worker = Worker(engine.runner, processors(host), intact=engine.weight_files.check)
    return InProcess(worker, engine.network.target.device, overlaps=overlaps)


def in_ranks(
    directory: Path,
    host: PluginHost,
    *,
    tensor: int,
    stages: int,
    device: str,
    options: Mapping[str, Any],
    start_timeout: float | None = None,
) -> tuple[RankExecutor, EngineFacts]:
    """The ranks of a divided engine, each in a process of its own.

    Args:
        options: of ``load_engine``, plain data.
        start_timeout: seconds that the ranks have to load; None for no limit.

    Raises:
        BestiaryError: what a rank raised while it loaded, or that one does not come to an end.
    """
    executor = RankExecutor(
        tensor=tensor,
        stages=stages,
        device=device,
        host=host,
        worker="bestiary.core.engine.rank_worker:make",
        arguments={"directory": str(directory.absolute()), **options},
        start_timeout=start_timeout,
    )
    facts = [EngineFacts.from_dict(found) for found in executor.facts]
    # A stage knows its own layers only: one whose keys depend on the prompt's length decides for all.
    return executor, replace(facts[0], prefix_caching=all(one.prefix_caching for one in facts))
