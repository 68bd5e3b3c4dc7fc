"""Who may run: refusing what never can, with the arithmetic, and letting in who waits, in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bestiary.core.errors import RequestError
from bestiary.core.runtime import reuse
from bestiary.core.runtime.block_tables import BlockTables
from bestiary.core.runtime.cache_groups import CacheGroup
from bestiary.core.runtime.policies import Order
from bestiary.core.runtime.queue import WaitingQueue
from bestiary.core.runtime.request import Request, State
from bestiary.core.runtime.reuse import Hit


def check_fit(request: Request, groups: Sequence[CacheGroup]) -> None:
    """Refuse a request whose ``cap`` of blocks is more than a group has.

    Raises:
        RequestError: it could not run even alone.
    """
    for cap, group in zip(request.cap, groups, strict=True):
        if cap > group.num_blocks:
            output = request.max_length - request.prompt_length
            span = "" if group.window is None else f", of which a window of {group.window} and a chunk are held at once"
            raise RequestError(
                "E-REQ-CACHE",
                f"request {request.id}",
                "can never fit the KV cache",
                found=f"{request.prompt_length} prompt + {output} output - 1 tokens{span} = {cap} blocks of "
                f"{group.block_size} tokens",
                expected=f"at most {group.num_blocks} blocks",
                hint="lower max_tokens, shorten the prompt, or give the KV cache more memory",
            )


class Admission:
    """The queue, and who of it may run next.

    Attributes:
        waiting: the queue, by rank.
    """

    def __init__(self, tables: BlockTables, order: Order) -> None:
        self._tables, self._order = tables, order
        self.waiting = WaitingQueue()
        self._arrivals = 0
        # The group that had no room for the first waiting request, and its version then.
        self._stuck_at: tuple[int, int] | None = None
        self._failed: dict[Request, Exception] = {}

    def add(self, request: Request) -> None:
        """A request arrives and gets its rank."""
        self._arrivals += 1
        if request.follows is not None:
            request.rank = request.follows.rank
        else:
            request.rank = self._order(request.params.priority, self._arrivals)
        self.waiting.add(request)
        self._stuck_at = None

    def remove(self, request: Request) -> None:
        """A waiting request ends."""
        self.waiting.remove(request)
        self._stuck_at = None

    def take_failed(self) -> list[tuple[Request, Exception]]:
        """Waiting requests that could not be admitted, and why."""
        failed, self._failed = self._failed, {}
        return list(failed.items())

    def next(self, number: int, running: int, enter: Callable[[Request, Hit], None]) -> Request | None:
        """The first waiting request that can run in the step ``number``; it has left the queue.

        Args:
            enter: lets a request run with what of its blocks is there. If that fails, it leaves all as it was.
            running: how many run. Without promises, a block for each of them keeps them from being preempted at once.
        """
        if self._stuck_at is not None and self._tables.versions[self._stuck_at[0]] == self._stuck_at[1]:
            return None
        for request in self.waiting:
            if request in self._failed:
                continue
            sibling = request.sibling
            if sibling is not None and sibling.state is State.RUNNING and not 0 < sibling.prompt_step < number:
                continue  # its prompt is being computed by the one before it
            try:
                hit = self._hit(request, number)
                lacks = self._tables.lacks(request, hit, spare=running)
                if lacks is not None:
                    self._stuck_at = lacks, self._tables.versions[lacks]
                    return None
                enter(request, hit)
            except Exception as error:
                self._failed[request] = error
                continue
            self.waiting.remove(request)
            return request
        return None

    def _hit(self, request: Request, number: int) -> Hit:
        sibling = request.sibling
        if sibling is not None and sibling.state is State.RUNNING and not len(request.tokens) > request.prompt_length:
            forked = reuse.fork(request, self._tables.groups)
            if forked is not None:
                return forked
        return self._tables.match(request, number)
