"""An answer to wait for or to read as it comes, in asyncio."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import suppress

from bestiary.core.driver import Driver
from bestiary.core.errors import UsageError
from bestiary.core.jobs import Job
from bestiary.core.outputs import RequestOutput, StreamPiece


class AsyncAnswer(AsyncIterator[StreamPiece]):
    """What ``LLM.generate_async`` gives: ``await answer`` for the whole, ``async for piece in answer`` for what comes.

    Nobody waits for a slow reader: tokens gather, and the next piece has all of them. Dropping the object before its end
    aborts the request, and so does cancelling the task that waits for it.
    """

    def __init__(self, driver: Driver, prepare: Callable[[Callable[[], None]], Job]) -> None:
        """Start the job that ``prepare(on_news)`` makes."""
        self._driver = driver
        try:
            self._here = asyncio.get_running_loop()
        except RuntimeError:
            raise UsageError(
                "E-REQ-ASYNC",
                "generate_async",
                "needs a running event loop and there is none",
                hint="call it in a coroutine, or use generate or stream",
            ) from None
        self._news = asyncio.Event()
        self._gathered: deque[StreamPiece] = deque()
        self._job = prepare(self._listener())
        driver.start()
        driver.submit(self._job)

    def _listener(self) -> Callable[[], None]:
        """What the engine calls when something came. It does not keep this object alive."""
        driver, here = self._driver, weakref.ref(self)

        def news() -> None:
            answer = here()
            if answer is not None:
                driver.tell(answer._wake)

        return news

    def abort(self) -> None:
        """End the request; its blocks are free within two steps. What came so far stays."""
        if not self._job.finished:
            self._driver.post(self._job.abort)

    async def __anext__(self) -> StreamPiece:
        try:
            while not self._gathered:
                self._news.clear()
                done = self._job.finished
                self._gathered.extend(self._job.pieces())
                if self._gathered:
                    break
                if done:
                    raise StopAsyncIteration
                await self._news.wait()
        except asyncio.CancelledError:
            self.abort()
            raise
        return self._gathered.popleft()

    def __await__(self) -> Generator[object, None, RequestOutput]:
        return self._whole().__await__()

    async def _whole(self) -> RequestOutput:
        try:
            while not self._job.finished:
                self._news.clear()
                if self._job.finished:
                    break
                await self._news.wait()
        except asyncio.CancelledError:
            self.abort()
            raise
        return self._job.output()

    def __del__(self) -> None:
        if getattr(self, "_job", None) is not None:
            self.abort()

    def _wake(self) -> None:
        with suppress(RuntimeError):  # the event loop is closed, and nobody waits
            self._here.call_soon_threadsafe(self._news.set)
