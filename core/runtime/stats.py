"""What an engine did and does, in numbers."""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bestiary.core.runtime.request import Request
    from bestiary.core.runtime.scheduler import Scheduler

_STEPS = 1024  # whose times are kept


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """A moment's figures.

    Args:
        running, waiting: requests.
        finished: requests that have ended, by reason.
        preemptions: how often a running request had to give up its blocks.
        prompt_tokens, output_tokens: computed and generated so far; ``cached_tokens`` prompt tokens needed no computation.
        blocks_free, blocks_cached, blocks_used: of the KV cache, all groups together.
        steps: so far.
        step_seconds: median of the last 1024 steps, from one step's results to the next's.
        host_seconds: median of the time in which the host decided, asked and took in, without launching or waiting.
    """

    running: int
    waiting: int
    finished: dict[str, int]
    preemptions: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    blocks_free: int
    blocks_cached: int
    blocks_used: int
    steps: int
    step_seconds: float
    host_seconds: float

    @property
    def kv_use(self) -> float:
        """The part of the KV cache's blocks that requests hold, 0 … 1."""
        total = self.blocks_free + self.blocks_cached + self.blocks_used
        return self.blocks_used / total if total else 0.0


@dataclass
class Meters:
    """Counts, kept by the loop."""

    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    finished: dict[str, int] = field(default_factory=dict)
    times: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_STEPS))
    """Seconds of each step: in all, and of those the host's own."""

    def began(self, request: Request) -> None:
        """Its first token is there."""
        self.prompt_tokens += request.prompt_length
        self.cached_tokens += request.num_cached or 0

    def ended(self, request: Request) -> None:
        """It is over."""
        reason = request.finish_reason or "error"
        self.finished[reason] = self.finished.get(reason, 0) + 1


def snapshot(meters: Meters, scheduler: Scheduler) -> EngineStats:
    """The figures of this moment."""
    pools, times = scheduler.tables.pools, list(meters.times)
    return EngineStats(
        running=len(scheduler.running),
        waiting=len(scheduler.waiting),
        finished=dict(meters.finished),
        preemptions=scheduler.num_preemptions,
        prompt_tokens=meters.prompt_tokens,
        cached_tokens=meters.cached_tokens,
        output_tokens=meters.output_tokens,
        blocks_free=sum(pool.num_free for pool in pools),
        blocks_cached=sum(pool.num_cached for pool in pools),
        blocks_used=sum(pool.num_used for pool in pools),
        steps=meters.steps,
        step_seconds=statistics.median(whole for whole, _ in times) if times else 0.0,
        host_seconds=statistics.median(host for _, host in times) if times else 0.0,
    )
