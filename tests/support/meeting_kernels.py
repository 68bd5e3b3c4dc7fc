"""Kernels with which tensor-parallel ranks are threads of one process: ``Ranks.group`` is a :class:`Meeting`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bestiary import Kernel, hookimpl
from bestiary.core.engine.load import load_engine
from bestiary.core.engine.steps import logits
from bestiary.core.ops.collective import Place, Ranks
from bestiary.core.plugins import PluginHost
from bestiary.core.runtime.messages import StepMessage

#: For ``kernels=`` of an engine, and of a divided one.
CHOSEN = {"all_reduce": "meeting", "all_gather": "meeting"}


@hookimpl
def bestiary_register_kernels(register: Callable[[Kernel], None]) -> None:
    for op in CHOSEN:
        register(Kernel(op=op, name="meeting", run=f"meeting_kernels:{op}"))


class Meeting:
    """Where ranks bring a tensor each, and go when all have seen all of them."""

    def __init__(self, count: int) -> None:
        self.places = [Place(tensor=Ranks(rank, count, self)) for rank in range(count)]
        self._barrier = threading.Barrier(count, timeout=60)
        self._brought: dict[int, Tensor] = {}

    def exchange(self, x: Tensor, rank: int) -> list[Tensor]:
        """What all of them brought, in order."""
        self._brought[rank] = x.clone()
        self._barrier.wait()
        found = [self._brought[one] for one in sorted(self._brought)]
        self._barrier.wait()
        return found

    def run(self, each: Sequence[Callable[[], Any]]) -> list[Any]:
        """What each rank's function returns; one that fails fails all."""
        results: dict[int, Any] = {}

        def one(rank: int, function: Callable[[], Any]) -> None:
            try:
                results[rank] = function()
            except BaseException as error:
                results[rank] = error
                self._barrier.abort()

        threads = [threading.Thread(target=one, args=pair) for pair in enumerate(each)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        errors = [result for result in results.values() if isinstance(result, BaseException)]
        for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
            raise error
        return [results[rank] for rank in range(len(each))]


def all_reduce(x: Tensor, ranks: Ranks, *, out: Tensor) -> None:
    out.copy_(sum(ranks.group.exchange(x, ranks.rank)))


def all_gather(x: Tensor, ranks: Ranks, *, out: Tensor) -> None:
    out.copy_(torch.cat(ranks.group.exchange(x, ranks.rank), -1))


def undivided(directory: Path, host: PluginHost, message: StepMessage, **said: Any) -> Tensor:
    """Logits of one process."""
    return logits(load_engine(directory, host=host, num_blocks=8, **said), message).clone()


def divided(directory: Path, host: PluginHost, message: StepMessage, **said: Any) -> Tensor:
    """Logits of two ranks, which both have them; each of them holds a part of the weights."""
    meeting = Meeting(2)
    engines = [load_engine(directory, host=host, num_blocks=8, place=place, **said) for place in meeting.places]
    first, second = meeting.run([lambda one=one: logits(one, message).clone() for one in engines])  # type: ignore[misc]
    assert torch.equal(first, second)
    return first
