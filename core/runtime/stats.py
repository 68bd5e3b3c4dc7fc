"""What an engine did and does, in numbers."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bestiary.core.outputs import FinishReason
from bestiary.core.runtime.request import Request, State

if TYPE_CHECKING:
    from bestiary.core.runtime.pulse import Pulse
    from bestiary.core.runtime.scheduler import Scheduler
    from bestiary.core.runtime.slow_calls import SlowCalls

_STEPS = 1024  # whose times are kept


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """A moment's figures. Each of the ``n`` or ``best_of`` answers to a prompt counts as a request, a beam search as one.

    Args:
        running, waiting: requests; a beam search runs while any of its beams does.
        finished: requests that have ended, by reason; of a beam search, by that of its best answer.
        preemptions: how often a running request, or a beam, had to give up its blocks.
        prompt_tokens: of the prompts of requests whose first token has come, computed or reused.
        cached_tokens: those of the prompt tokens that were reused, so that the others were computed.
        output_tokens: generated so far; of a beam search, by every beam.
        blocks_free, blocks_cached, blocks_used: of the KV cache, all groups together.
        steps: so far.
        step_seconds: median of the last 1024 steps, from one step's results to the next's.
        host_seconds: median of the time in which the host decided, asked and took in, without launching or waiting.
        step_under_way: seconds since the step under way began; None between steps.
        since_last_step: seconds since the last step ended; None before the first.
        stalled: the step under way takes longer than ``step_warning``.
        slow_calls: plugin → how many calls of its grammars and logits processors took a second or more.
        cache_misses: why the prompts of requests whose first token has come were not reused further → how many requests.
            ``"salt"`` is also counted where ``RequestOutput.cache_miss`` says ``"unseen"``, because the salt is another's.
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
    step_under_way: float | None
    since_last_step: float | None
    stalled: bool
    slow_calls: dict[str, int]
    cache_misses: dict[str, int] = field(default_factory=dict)

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
    cache_misses: dict[str, int] = field(default_factory=dict)
    times: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_STEPS))
    """Seconds of each step: in all, and of those the host's own."""

    def began(self, request: Request) -> None:
        """Its first token is there. What goes on for an earlier request has that one's prompt."""
        if request.follows is not None:
            return
        self.prompt_tokens += request.prompt_length
        self.cached_tokens += request.num_cached or 0
        miss = "salt" if request.salt_hides else request.cache_miss
        if miss is not None:
            self.cache_misses[miss] = self.cache_misses.get(miss, 0) + 1

    def ended(self, request: Request) -> None:
        """It is over."""
        if not request.part:
            self.over(request.finish_reason or "error")

    def over(self, reason: FinishReason) -> None:
        """What was submitted is over, and why."""
        self.finished[reason] = self.finished.get(reason, 0) + 1


def snapshot(meters: Meters, scheduler: Scheduler, pulse: Pulse, slow_calls: SlowCalls) -> EngineStats:
    """The figures of this moment."""
    pools, times = scheduler.tables.pools, list(meters.times)
    now, began, ended = pulse.clock(), pulse.began, pulse.ended
    running = _live(scheduler.running)
    return EngineStats(
        running=len(running),
        waiting=len(_live(scheduler.waiting) - running),
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
        step_under_way=None if began is None else now - began,
        since_last_step=None if ended is None else now - ended,
        stalled=pulse.late,
        slow_calls=dict(slow_calls.counts),
        cache_misses=dict(meters.cache_misses),
    )


def _live(requests: Iterable[Request]) -> set[str]:
    """What was submitted and has not ended: an engine that was given up in the middle of a step still holds the others."""
    return {(request.follows or request).id for request in requests if request.state is not State.FINISHED}
