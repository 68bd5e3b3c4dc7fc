"""An answer to wait for or to read as it comes, in asyncio."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager, suppress

from bestiary.core.driver import Driver
from bestiary.core.errors import UsageError
from bestiary.core.jobs import Job
from bestiary.core.outputs import RequestOutput, StreamPiece


class AsyncAnswer(AsyncIterator[StreamPiece]):
    """What ``LLM.generate_async`` gives: ``await answer`` for the whole, ``async for piece in answer`` for what comes.

    Any number may await it, in any event loop. Pieces are for one reader, each once; one that stopped in the middle may be
    followed by another. Nobody waits for a slow reader: tokens gather, and the next piece has all of them. Dropping the
    object before its end aborts the request, and so does cancelling the task that waits for it.
    """

    def __init__(self, driver: Driver, prepare: Callable[[Callable[[], None]], Job]) -> None:
        """Start the job that ``prepare(on_news)`` makes."""
        self._driver = driver
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise UsageError(
                "E-REQ-ASYNC",
                "generate_async",
                "needs a running event loop and there is none",
                hint="call it in a coroutine, or use generate or stream",
            ) from None
        self._waiting: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}  # those to be told of news, and where
        self._reading = threading.Lock()  # a piece is being waited for
        self._reader: weakref.ref[_Reader] | None = None
        self._read = False  # to the end
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

    def __aiter__(self) -> AsyncIterator[StreamPiece]:
        if self._read:
            raise _second("its pieces have been read to the end")
        if self._reader is not None and self._reader() is not None:
            raise _second("another reader has its pieces")
        reader = _Reader(self)
        self._reader = weakref.ref(reader)
        return reader

    async def __anext__(self) -> StreamPiece:
        if not self._reading.acquire(blocking=False):
            raise _second("another reader waits for its next piece")
        try:
            while True:
                with self._listening() as news:
                    done = self._job.finished
                    self._gathered.extend(self._job.pieces())
                    if self._gathered:
                        return self._gathered.popleft()
                    if done:
                        self._read = True
                        raise StopAsyncIteration
                    await news.wait()
        except asyncio.CancelledError:
            self.abort()
            raise
        finally:
            self._reading.release()

    def __await__(self) -> Generator[object, None, RequestOutput]:
        return self._whole().__await__()

    async def _whole(self) -> RequestOutput:
        try:
            while True:
                with self._listening() as news:
                    if self._job.finished:
                        return self._job.output()
                    await news.wait()
        except asyncio.CancelledError:
            self.abort()
            raise

    @contextmanager
    def _listening(self) -> Iterator[asyncio.Event]:
        """Be told of what comes from here on, in the event loop that runs here."""
        news = asyncio.Event()
        self._waiting[news] = asyncio.get_running_loop()
        try:
            yield news
        finally:
            del self._waiting[news]

    def __del__(self) -> None:
        if getattr(self, "_job", None) is not None:
            self.abort()

    def _wake(self) -> None:
        for news, where in list(self._waiting.items()):
            with suppress(RuntimeError):  # that event loop is closed, and nobody waits in it
                where.call_soon_threadsafe(news.set)


class _Reader(AsyncIterator[StreamPiece]):
    """One who reads an answer's pieces, for as long as he does."""

    def __init__(self, answer: AsyncAnswer) -> None:
        self._answer = answer

    def __anext__(self) -> Awaitable[StreamPiece]:
        return self._answer.__anext__()


def _second(found: str) -> UsageError:
    return UsageError(
        "E-REQ-READER",
        "async for",
        "can't read this answer: each piece is given once",
        found=found,
        hint="await the answer for the whole of it, which any number may do",
    )
