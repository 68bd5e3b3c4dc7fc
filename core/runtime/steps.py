"""What each step held, for who wants to know it. A loop without a recorder keeps none of this."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from bestiary.core.runtime.batch import Batch
    from bestiary.core.runtime.scheduler import Scheduler


class StepRecord(NamedTuple):
    """A step whose results were read.

    Args:
        at: when, in seconds of the monotonic clock.
        seconds: since the results of the step before; None where none was under way.
        decodes, prompt_tokens: the tokens that ran.
        running, waiting: requests, those that ended by this step included.
        blocks_used: KV blocks that requests hold, of all groups.
        preemptions: so far.
    """

    at: float
    seconds: float | None
    decodes: int
    prompt_tokens: int
    running: int
    waiting: int
    blocks_used: int
    preemptions: int


class StepRecorder:
    """Keeps the last steps of a loop. Any thread may read ``steps`` while no request is under way.

    Args:
        limit: how many are kept.

    Attributes:
        seen: how many there were.
    """

    def __init__(self, limit: int = 200_000) -> None:
        self.steps: deque[StepRecord] = deque(maxlen=limit)
        self.seen = 0

    def saw(self, batch: Batch, scheduler: Scheduler, now: float, seconds: float | None) -> None:
        """A step's results were read; nothing of them is taken in yet."""
        self.seen += 1
        used = sum(pool.num_used for pool in scheduler.tables.pools)
        self.steps.append(
            StepRecord(
                now,
                seconds,
                batch.message.decodes,
                batch.prompt_tokens,
                len(scheduler.running),
                len(scheduler.waiting),
                used,
                scheduler.num_preemptions,
            )
        )
