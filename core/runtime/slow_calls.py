"""Calls of plugins' functions inside a step that take long: every request waits for them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

log = logging.getLogger("bestiary.runtime.slow_calls")

#: Seconds from which on a call is slow.
SLOW: Final = 1.0
#: Seconds in which one plugin is complained about once.
QUIET: Final = 10.0


class SlowCalls:
    """Counts them by plugin, and logs one for each plugin and request, and of a plugin not one right after another.

    Args:
        slow: seconds from which on a call counts.
        clock: seconds that only grow.

    Attributes:
        counts: plugin, with its distribution → how many of its calls were slow.
    """

    def __init__(self, slow: float = SLOW, clock: Callable[[], float] = time.monotonic) -> None:
        self._slow, self._clock = slow, clock
        self.counts: dict[str, int] = {}
        self._told: dict[str, set[str]] = {}  # by request
        self._spoke: dict[str, float] = {}  # by plugin, when

    def saw(self, plugin: str, request: str, seconds: float) -> None:
        """A call for a request took so long."""
        if seconds < self._slow:
            return
        self.counts[plugin] = self.counts.get(plugin, 0) + 1
        told, now = self._told.setdefault(request, set()), self._clock()
        if plugin in told or now - self._spoke.get(plugin, -QUIET) < QUIET:
            return
        told.add(plugin)
        self._spoke[plugin] = now
        log.warning("%s took %.1f s for request %s; all requests wait meanwhile", plugin, seconds, request)

    def ended(self, request: str) -> None:
        """Forget a request."""
        self._told.pop(request, None)


def described(function: object) -> str:
    """A logits processor by name: what :class:`~bestiary.core.guides.Processor` says of itself, else where it was defined."""
    plugin = getattr(function, "plugin", None)
    if isinstance(plugin, str):
        return plugin
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"logits processor {named.__module__}.{named.__qualname__}"
