"""A server that speaks OpenAI's API: ours or another's."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from bestiary.core.bench.asks import Ask
from bestiary.core.bench.records import Ending, Record
from bestiary.core.bench.sse import events
from bestiary.core.bench.target import About, EngineSide
from bestiary.core.errors import EngineError, PluginError, UsageError, said
from bestiary.core.text.tokenizer import Tokenizer

Api = Literal["completions", "chat"]

_PATHS: dict[str, str] = {"completions": "completions", "chat": "chat/completions"}
_CONNECT = 10.0  # seconds
_EVENTS = "text/event-stream"
_SHOWN = 60  # bytes of an answer that is none
_BARE = re.compile(r"(localhost|[\w.-]+:\d+)(:\d+)?(/.*)?", re.ASCII)


class _BadStream(Exception):
    """The stream holds what the API does not know."""


def httpx_or_refuse() -> Any:
    """The HTTP client's module.

    Raises:
        PluginError: it is not installed.
    """
    try:
        import httpx
    except ImportError as error:
        raise PluginError("E-BENCH-HTTPX", "httpx", "is not installed, and URLs are asked with it") from error
    return httpx


def is_url(target: str) -> bool:
    """Whether a command's argument is the address of a server."""
    return target.startswith(("http://", "https://"))


def refuse_bare(target: str) -> None:
    """Refuse what is the address of a server but for its beginning; without that it would be taken for a model.

    Raises:
        UsageError: a host and a port, or localhost.
    """
    if _BARE.fullmatch(target) and not Path(target).exists():
        raise UsageError(
            "E-BENCH-URL",
            target,
            "a server's address begins with http:// or https://",
            hint=f"http://{target}, if it is one",
        )


class UrlTarget:
    """Streams answers of ``/completions`` or ``/chat/completions`` below an address such as ``http://localhost:8000/v1``.

    Tokens are counted by the ``usage`` at the end of a stream; where a server has none, a piece is taken for a token.

    Args:
        model: what to ask for; None: the first that the server lists.
        key: sent as a bearer token.
        tokenizer: of the model, to make prompts of known lengths.

    Raises:
        PluginError: httpx is not installed.
        UsageError: the address is no URL.
        EngineError: the server does not say which models it has.
    """

    forgets = False
    longest: int | None = None
    vocab_size: int | None = None

    def __init__(
        self,
        url: str,
        *,
        api: Api = "completions",
        model: str | None = None,
        key: str | None = None,
        tokenizer: Tokenizer | None = None,
        name: str | None = None,
    ) -> None:
        self._httpx = httpx_or_refuse()
        try:
            parts = self._httpx.URL(url)
            host, port = parts.host, parts.port
        except (ValueError, self._httpx.InvalidURL):
            host, port = None, None
        if not host:
            raise UsageError("E-BENCH-URL", url, "no address", expected="a URL such as http://localhost:8000/v1")
        self._base, self._api, self.tokenizer = url.rstrip("/"), api, tokenizer
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        where = host if port is None else f"{host}:{port}"
        self._model = model or self._first_model(where)
        self.about = About(name or where, "url", self._model, None, {"url": self._base, "api": api})
        self._client = self._httpx.AsyncClient(
            headers=self._headers,
            timeout=self._httpx.Timeout(None, connect=_CONNECT),
            limits=self._httpx.Limits(max_connections=None, max_keepalive_connections=None),
        )

    def begin(self) -> None:
        pass

    def end(self) -> EngineSide | None:
        return None

    async def answer(self, ask: Ask, arrived: Callable[[int], None]) -> Ending:
        stream = _Stream(arrived)
        try:
            address = f"{self._base}/{_PATHS[self._api]}"
            async with self._client.stream("POST", address, json=self._body(ask)) as response:
                if response.status_code != 200:
                    text = (await response.aread()).decode("utf-8", "replace")
                    return Ending(error=f"http {response.status_code}", message=_reason(text))
                body = _Body(response.aiter_bytes())
                async for data in events(body.chunks()):
                    stream.take(data)
                if not stream.began:
                    body.refuse_other(response.headers.get("content-type", ""))
        except _BadStream as error:
            return stream.ending("malformed", str(error))
        except self._httpx.RemoteProtocolError as error:
            return stream.ending("cut", said(error))
        except self._httpx.RequestError as error:
            kind = "cut" if stream.began else "connection"
            return stream.ending(kind, said(error) or type(error).__name__)
        return stream.ending()

    def batch(self, asks: Sequence[Ask]) -> list[Record] | None:
        return None

    async def close(self) -> None:
        await self._client.aclose()

    def _first_model(self, where: str) -> str:
        hint = "name the model with --model, or check the address: it mostly ends in /v1"
        try:
            answer = self._httpx.get(f"{self._base}/models", headers=self._headers, timeout=_CONNECT)
            answer.raise_for_status()
            return str(answer.json()["data"][0]["id"])
        except self._httpx.HTTPError as error:
            found = said(error).partition("\n")[0][:120]
        except (ValueError, LookupError, TypeError):
            found = "no list of models"
        raise EngineError("E-BENCH-MODELS", where, "does not say which models it has", found=found, hint=hint)

    def _body(self, ask: Ask) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "max_tokens": ask.output_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if ask.ignore_eos:
            body["ignore_eos"] = True
        if self._api == "chat":
            return {**body, "messages": [{"role": "user", "content": ask.prompt}]}
        return {**body, "prompt": ask.prompt if isinstance(ask.prompt, str) else list(ask.prompt)}


class _Body:
    """The bytes of an answer, of which the first are kept."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks, self._first = chunks, b""

    async def chunks(self) -> AsyncIterator[bytes]:
        """All of them."""
        async for chunk in self._chunks:
            self._first = self._first or chunk[:_SHOWN]
            yield chunk

    def refuse_other(self, kind: str) -> None:
        """Raise _BadStream for what had no event and does not say that it is a stream of events."""
        name = kind.partition(";")[0].strip().lower()
        if name != _EVENTS:
            shown = " ".join(self._first.decode("utf-8", "replace").split())
            raise _BadStream(f"no event stream but {name or 'no content type'}: {shown!r}")


class _Stream:
    """What a stream of events adds up to."""

    def __init__(self, arrived: Callable[[int], None]) -> None:
        self._arrived = arrived
        self._finish: str | None = None
        self._usage: dict[str, Any] = {}
        self._error: str | None = None
        self._done = self.began = False

    def take(self, data: str) -> None:
        """One event."""
        self.began = True
        if data == "[DONE]":
            self._done = True
            return
        try:
            event = json.loads(data)
        except ValueError:
            raise _BadStream(f"not JSON: {data[:60]!r}") from None
        if not isinstance(event, dict):
            raise _BadStream(f"no object: {data[:60]!r}")
        if event.get("error"):
            self._error = _reason(data)
            return
        if isinstance(event.get("usage"), dict):
            self._usage = event["usage"]
        for choice in _choices(event, data):
            if _has_text(choice):
                self._arrived(1)
            self._finish = choice.get("finish_reason") or self._finish

    def ending(self, error: str | None = None, message: str | None = None) -> Ending:
        """What the answer comes to."""
        if error is None and self._error is not None:
            error, message = "server", self._error
        if error is None and not self._done and self._finish is None:
            error, message = "cut", "the stream ended before the answer did"
        details = self._usage.get("prompt_tokens_details")
        return Ending(
            finish_reason=None if error else self._finish,
            error=error,
            message=message,
            prompt_tokens=_count(self._usage.get("prompt_tokens")),
            # What came before a failure is what its pieces show.
            output_tokens=None if error else _count(self._usage.get("completion_tokens")),
            cached_tokens=_count(details.get("cached_tokens")) if isinstance(details, dict) else None,
        )


def _choices(event: dict[str, Any], data: str) -> list[dict[str, Any]]:
    choices = event.get("choices") or []
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise _BadStream(f"no choices: {data[:60]!r}")
    return choices


def _has_text(choice: dict[str, Any]) -> bool:
    """Whether a piece brings a token: the first one of a chat only names the role."""
    delta = choice.get("delta")
    if isinstance(delta, dict):
        return any(delta.get(key) for key in ("content", "reasoning_content", "reasoning", "tool_calls"))
    return bool(choice.get("text"))


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _reason(text: str) -> str:
    """What a server says of an error, in at most 200 characters."""
    try:
        found = json.loads(text)
        inner = found.get("error", found)
        text = str(inner.get("message", inner) if isinstance(inner, dict) else inner)
    except (ValueError, AttributeError):
        pass
    return " ".join(text.split())[:200]
