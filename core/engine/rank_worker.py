"""The worker of one rank of a divided engine, in a process of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bestiary.core.engine.facts import EngineFacts
from bestiary.core.engine.load import load_engine
from bestiary.core.guides import processors
from bestiary.core.ops.collective import Place
from bestiary.core.plugins import PluginHost
from bestiary.core.runtime.worker import Worker


class RankWorker(Worker):
    """A worker that says what its engine is.

    Attributes:
        facts: of the engine, as :class:`EngineFacts` are sent.
    """

    facts: Mapping[str, Any]


def make(*, place: Place, device: torch.device, host: PluginHost, directory: str, **options: Any) -> RankWorker:
    """Load this rank's share of an engine.

    Args:
        directory: of the engine.
        options: of ``load_engine``.
    """
    engine = load_engine(Path(directory), host=host, device=str(device), place=place, **options)
    worker = RankWorker(engine.runner, processors(host), place, intact=engine.weight_files.check)
    worker.facts = EngineFacts.of(engine).as_dict()
    return worker
