"""A small server of OpenAI's streaming API for tests: it counts, keeps its own times, and fails when it is told to."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

#: What may go wrong with a request: a status, a stream that ends early (with or without the chunks' end), bytes that are no
#: event, an error inside the stream, silence, or a page in its place.
FAULTS = ("429", "500", "cut", "dropped", "malformed", "error", "silent", "page")
PAGE = b"<html>\n  <p>Who are you?</p></html>"


@dataclass
class Seen:
    """A request as the server saw it; times on the monotonic clock."""

    path: str
    body: Mapping[str, Any]
    headers: Mapping[str, str]
    came: float
    sent: list[float] = field(default_factory=list)


class OpenAIServer:
    """Serves on a free port of this machine, in a thread of its own, while it is entered.

    Args:
        delay: seconds before each token.
        faults: what goes wrong, by the number of the request for an answer; ``every`` for all.
        usage: end streams with the counts.
        pack: tokens in a piece.
    """

    def __init__(
        self,
        *,
        delay: float = 0.0,
        faults: Mapping[int, str] | None = None,
        every: str | None = None,
        usage: bool = True,
        pack: int = 1,
        models: Sequence[str] = ("parrot",),
    ) -> None:
        self._delay, self._faults, self._every = delay, dict(faults or {}), every
        self._usage, self._pack, self._models = usage, pack, models
        self.seen: list[Seen] = []
        self.url = ""
        self._ready = threading.Event()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        self._ready.set()
        await self._stop.wait()
        server.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._request(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client left, or the test is over
        finally:
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; whether the connection goes on."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        path = head[0].split(" ")[1]
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        raw = await reader.readexactly(int(headers.get("content-length", 0)))
        if path.endswith("/models"):
            models = [{"id": name} for name in self._models]
            _whole(writer, "200 OK", {"object": "list", "data": models})
            return True
        number = len(self.seen)
        self.seen.append(seen := Seen(path, json.loads(raw), headers, time.monotonic()))
        fault = self._faults.get(number, self._every)
        if fault in ("429", "500"):
            _whole(writer, f"{fault} No", {"error": {"message": f"no answer: {fault}"}})
            return True
        if fault == "page":
            kind = "text/html; charset=utf-8"
            writer.write(
                f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(PAGE)}\r\n\r\n".encode() + PAGE
            )
            return True
        await self._stream(seen, fault, reader, writer)
        return fault is None

    async def _stream(
        self, seen: Seen, fault: str | None, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        chat, wanted = seen.path.endswith("/chat/completions"), seen.body["max_tokens"]
        if chat:
            _event(writer, {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        for number in range(0, wanted, self._pack):
            if fault is not None and number >= wanted // 2:
                if fault == "silent":
                    await reader.read()  # until the client leaves
                await _break(writer, fault)
                return
            await asyncio.sleep(self._delay * self._pack)
            last = number + self._pack >= wanted
            text = " word" * min(self._pack, wanted - number) + ("\u2028" if number == 0 else "")
            piece: dict[str, Any] = {"index": 0, "finish_reason": "length" if last else None}
            _event(writer, {"choices": [{**piece, **({"delta": {"content": text}} if chat else {"text": text})}]})
            await writer.drain()
            seen.sent.append(time.monotonic())
        if self._usage:
            prompt = seen.body["messages"][0]["content"] if chat else seen.body["prompt"]
            length = len(prompt.split()) if isinstance(prompt, str) else len(prompt)
            details = {"cached_tokens": 2}
            counts = {"prompt_tokens": length, "completion_tokens": wanted, "prompt_tokens_details": details}
            _event(writer, {"choices": [], "usage": counts})
        _chunk(writer, b": a comment\n\ndata: [DONE]\n\n")
        _chunk(writer, b"")
        await writer.drain()


async def _break(writer: asyncio.StreamWriter, fault: str) -> None:
    if fault == "malformed":
        _chunk(writer, b"data: {broken\n\n")
    elif fault == "error":
        _event(writer, {"error": {"message": "the engine died"}})
    if fault != "dropped":
        _chunk(writer, b"")
    await writer.drain()


def _whole(writer: asyncio.StreamWriter, status: str, value: object) -> None:
    raw = json.dumps(value).encode()
    writer.write(f"HTTP/1.1 {status}\r\ncontent-length: {len(raw)}\r\n\r\n".encode() + raw)


def _event(writer: asyncio.StreamWriter, value: object) -> None:
    _chunk(writer, b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\r\n\r\n")


def _chunk(writer: asyncio.StreamWriter, raw: bytes) -> None:
    writer.write(f"{len(raw):x}\r\n".encode() + raw + b"\r\n")
