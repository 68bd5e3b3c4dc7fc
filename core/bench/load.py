"""The load generator: requests one after the other, so many at a time, or when their time has come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from bestiary.core.bench.asks import Ask
from bestiary.core.bench.records import Ending, Record
from bestiary.core.bench.target import Target

#: Told of each request that is over.
Done = Callable[[Record], None]


@dataclass(frozen=True)
class ClosedLoop:
    """``concurrency`` users, each of whom asks again as soon as he has his answer."""

    kind: ClassVar[str] = "closed"

    concurrency: int

    async def run(self, target: Target, asks: Sequence[Ask], timeout: float, done: Done) -> list[Record]:
        """Records, in the order in which they were sent."""
        waiting, records = iter(asks), list[Record]()

        async def user() -> None:
            for ask in waiting:
                now = time.monotonic()
                records.append(record := Record(ask, now, now))
                await _answer(target, record, timeout)
                done(record)

        await asyncio.gather(*(user() for _ in range(min(self.concurrency, len(asks)))))
        return records


@dataclass(frozen=True)
class OpenLoop:
    """Requests that come as a Poisson process of ``rate`` a second, whether the earlier ones are answered or not.

    Args:
        seed: of the times between them, which scale with the rate.
    """

    kind: ClassVar[str] = "open"

    rate: float
    seed: int

    async def run(self, target: Target, asks: Sequence[Ask], timeout: float, done: Done) -> list[Record]:
        """Records, in the order in which they were sent."""
        random, records = Random(f"{self.seed} arrivals"), list[Record]()

        async def one(record: Record) -> None:
            await _answer(target, record, timeout)
            done(record)

        due = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for ask in asks:
                due += random.expovariate(self.rate)
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                records.append(record := Record(ask, due, time.monotonic()))
                group.create_task(one(record))
        return records


@dataclass(frozen=True)
class AllAtOnce:
    """Every request at once: offline, by the engine's own call for a batch where there is one."""

    kind: ClassVar[str] = "batch"

    async def run(self, target: Target, asks: Sequence[Ask], timeout: float, done: Done) -> list[Record]:
        """Records, in the order of the requests."""
        records = target.batch(asks)
        if records is None:
            return await ClosedLoop(len(asks)).run(target, asks, timeout, done)
        for record in records:
            done(record)
        return records


Load = ClosedLoop | OpenLoop | AllAtOnce


async def _answer(target: Target, record: Record, timeout: float) -> None:
    try:
        async with asyncio.timeout(timeout):
            ending = await target.answer(record.ask, record.arrived)
    except TimeoutError:
        ending = Ending(error="timeout", message=f"not at its end after {timeout:g} s")
    record.end(ending)
