"""One line about a running batch: requests done, tokens a second in and out, how full the KV cache is."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

from bestiary.core.jobs import Job
from bestiary.core.progress import bearing
from bestiary.core.runtime.loop import EngineLoop

_EVERY: Final = 0.2  # seconds between two looks at the figures


class BatchProgress:
    """Shows how far the jobs are, while they run, if stderr can be written. To be used as a context manager."""

    def __init__(self, jobs: Sequence[Job], loop: EngineLoop, *, shown: bool) -> None:
        from tqdm import tqdm

        self._open, self._loop, self._shown = list(jobs), loop, shown
        self._bar = tqdm(
            total=len(jobs), desc="requests", disable=not shown, file=bearing(sys.stderr), dynamic_ncols=True
        )
        self._began = self._looked = time.monotonic()
        self._before = loop.meters.prompt_tokens, loop.meters.output_tokens
        self._ended = -1  # requests of the loop, when the jobs were looked at

    def done(self) -> bool:
        """Every job is finished."""
        return not self._open

    def update(self) -> None:
        """After a step."""
        ended = sum(self._loop.meters.finished.values())
        # A job ends with one of its requests, so most steps need no look at every job.
        looks = ended != self._ended or self._loop.idle
        still = [job for job in self._open if not job.finished] if looks else self._open
        self._ended, now = ended, time.monotonic()
        if self._shown and (now - self._looked > _EVERY or not still):
            self._looked = now
            self._bar.set_postfix_str(self._figures(now - self._began), refresh=False)
        self._bar.update(len(self._open) - len(still))
        self._open = still

    def _figures(self, seconds: float) -> str:
        before_in, before_out = self._before
        meters = self._loop.meters
        into, out = meters.prompt_tokens - before_in, meters.output_tokens - before_out
        return f"in {into / seconds:,.0f} tok/s, out {out / seconds:,.0f} tok/s, KV {self._loop.stats().kv_use:.0%}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
