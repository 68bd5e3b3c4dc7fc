"""The loads of each measurement."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from bestiary.core.bench.asks import Workload
from bestiary.core.bench.lengths import Lengths
from bestiary.core.bench.load import AllAtOnce, ClosedLoop, OpenLoop
from bestiary.core.bench.measure import Point
from bestiary.core.errors import UsageError


def pairs(inputs: Sequence[str], outputs: Sequence[str]) -> list[tuple[Lengths, Lengths]]:
    """Lengths of prompts and answers; where one list is shorter, its last element goes on.

    Raises:
        UsageError: something is no length, or a pair is there twice.
    """
    found = [
        (Lengths.parse(one or inputs[-1], "--input"), Lengths.parse(other or outputs[-1], "--output"))
        for one, other in zip_longest(inputs, outputs)
    ]
    if len(set(found)) < len(found):
        raise UsageError("E-BENCH-LOAD", "latency", "a pair of lengths is given twice")
    return found


def latency(lengths: Sequence[tuple[Lengths, Lengths]], workloads: Sequence[Workload], requests: int) -> list[Point]:
    """One request at a time, for each pair of lengths."""
    return [
        Point(f"{input.text} → {output.text}", ClosedLoop(1), workload, requests)
        for (input, output), workload in zip(lengths, workloads, strict=True)
    ]


def throughput(workload: Workload, requests: int) -> list[Point]:
    """All requests at once."""
    return [Point(f"{requests} at once", AllAtOnce(), workload, requests)]


def loads(rates: Sequence[float], users: Sequence[int], seed: int) -> list[OpenLoop | ClosedLoop]:
    """Arrivals at each rate, or so many users at a time, the lightest first.

    Raises:
        UsageError: both are given, neither is, or one is not positive or given twice.
    """
    if bool(rates) == bool(users):
        found = "both" if rates else "neither"
        raise UsageError("E-BENCH-LOAD", "serve", "needs a load", found=found, expected="--rate or --concurrency")
    if not all(0 < rate < float("inf") for rate in rates) or not all(number > 0 for number in users):
        raise UsageError("E-BENCH-LOAD", "serve", "a load is not positive", expected="requests a second, or users")
    if len({*rates}) < len(rates) or len({*users}) < len(users):
        raise UsageError("E-BENCH-LOAD", "serve", "a load is given twice")
    return [OpenLoop(rate, seed) for rate in sorted(rates)] or [ClosedLoop(number) for number in sorted(users)]


def serve(workload: Workload, requests: int, loads: Sequence[OpenLoop | ClosedLoop]) -> list[Point]:
    """Each load, with at least a request a user."""
    points = []
    for load in loads:
        if isinstance(load, OpenLoop):
            points.append(Point(f"{_plainly(load.rate)} req/s", load, workload, requests, load.rate))
        else:
            label = f"{load.concurrency} users" if load.concurrency > 1 else "1 user"
            points.append(Point(label, load, workload, max(requests, load.concurrency), load.concurrency))
    return points


def _plainly(rate: float) -> str:
    """The shortest text that is this number and no other: two rates of a sweep never share a label."""
    return repr(float(rate)).removesuffix(".0")
