"""Runs: warmed up, repeated, and in turns where two targets are compared."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from bestiary.core.bench.asks import Ask, Prompt, Workload
from bestiary.core.bench.figures import RunFigures, figures
from bestiary.core.bench.load import AllAtOnce, ClosedLoop, Load
from bestiary.core.bench.records import Record
from bestiary.core.bench.slo import Slo
from bestiary.core.bench.target import EngineSide, Target
from bestiary.core.errors import EngineError, UsageError
from bestiary.core.progress import Progress, step


@dataclass(frozen=True)
class Point:
    """One load.

    Args:
        label: in tables, such as ``128 → 64`` or ``4 req/s``.
        count: requests of a run.
        x: the load as a number, where several points are a sweep.
    """

    label: str
    load: Load
    workload: Workload
    count: int
    x: float | None = None


class Run(NamedTuple):
    """One load on one target, once. ``repeat`` counts from 0."""

    point: Point
    target: Target
    repeat: int
    records: list[Record]
    side: EngineSide | None
    figures: RunFigures


@dataclass(frozen=True)
class Measurer:
    """Puts loads on targets.

    Args:
        targets: one, or two that are compared: each repeat has both, and who begins changes.
        repeats: of each load on each target.
        warmup: requests that are sent before, and not counted, of each kind of load.
        timeout: seconds that a request may take.
    """

    targets: Sequence[Target]
    repeats: int
    warmup: int
    timeout: float
    slo: Slo | None
    progress: Progress
    _had: dict[str, set[Prompt]] = field(default_factory=dict, init=False)
    """Prompts that a target may remember, by its name."""

    def run(self, points: Sequence[Point]) -> list[Run]:
        """All of it.

        Raises:
            UsageError: a request is longer than a target takes.
            EngineError: no request of a warm-up was answered.
        """
        self._check(points)
        with asyncio.Runner() as runner:
            try:
                with step(self.progress, "warm up", self._warmups(points) * len(self.targets), "requests"):
                    for place, point in enumerate(points):
                        for target in self.targets:
                            self._warm_up(runner, point, target, round=place)
                runs = list(self._measure(runner, points))
            finally:
                for target in self.targets:
                    runner.run(target.close())
        return runs

    def _measure(self, runner: asyncio.Runner, points: Sequence[Point]) -> Iterator[Run]:
        # No two runs have the same prompts, those that are compared excepted.
        round = len(points)
        for point in points:
            total = point.count * self.repeats * len(self.targets)
            with step(self.progress, point.label, total, "requests") as note:
                failed = 0
                for repeat in range(self.repeats):
                    asks, round = point.workload.asks(point.count, round), round + 1
                    for target in self.targets if repeat % 2 == 0 else reversed(self.targets):
                        run = self._once(runner, point, target, repeat, asks)
                        failed += sum(record.failed for record in run.records)
                        yield run
                note.text = f"{total} requests" + (f", {failed} failed" if failed else "")

    def _once(self, runner: asyncio.Runner, point: Point, target: Target, repeat: int, asks: Sequence[Ask]) -> Run:
        gc.collect()  # what earlier runs left is not this one's to clear away
        target.begin()
        if target.forgets:
            self._had.pop(target.about.name, None)
        repeated = self._repeated(target, asks)
        try:
            records = self._send(runner, point, target, asks)
        finally:
            side = target.end()
        found = figures(records, side, self.slo, repeated, arriving=point.load.kind == "open")
        return Run(point, target, repeat, records, side, found)

    def _warm_up(self, runner: asyncio.Runner, point: Point, target: Target, round: int) -> None:
        asks = point.workload.asks(min(point.count, self.warmup), round)
        if not asks:
            return
        self._repeated(target, asks)
        load = point.load if isinstance(point.load, ClosedLoop | AllAtOnce) else ClosedLoop(len(asks))
        records = self._send(runner, Point(point.label, load, point.workload, len(asks)), target, asks)
        if all(record.failed for record in records):
            ending = records[0].ending
            found = f"{ending.error}: {ending.message}" if ending.message else str(ending.error)
            raise EngineError("E-BENCH-WARMUP", target.about.name, "answered no request of the warm-up", found=found)

    def _repeated(self, target: Target, asks: Sequence[Ask]) -> int:
        """How many prompts the target has had before, those of these requests included; it has these too from now on."""
        had = self._had.setdefault(target.about.name, set())
        new = {ask.prompt for ask in asks} - had
        had |= new
        return len(asks) - len(new)

    def _send(self, runner: asyncio.Runner, point: Point, target: Target, asks: Sequence[Ask]) -> list[Record]:
        done: Callable[[Record], None] = lambda record: self.progress.advance(1)  # noqa: E731
        return runner.run(point.load.run(target, asks, self.timeout, done))

    def _warmups(self, points: Sequence[Point]) -> int:
        return sum(min(point.count, self.warmup) for point in points)

    def _check(self, points: Sequence[Point]) -> None:
        for point in points:
            longest = max((ask.input_tokens or 0) + ask.output_tokens for ask in point.workload.asks(point.count, 0))
            for target in self.targets:
                if target.longest is not None and longest > target.longest:
                    raise UsageError(
                        "E-BENCH-LONG", point.label, f"a request is longer than {target.about.name} takes",
                        found=f"{longest} tokens of prompt and answer", expected=f"at most {target.longest}",
                    )  # fmt: skip
