"""A request's answer as it grows: text, log-probabilities, times."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from bestiary.core.outputs import (
    CompletionOutput,
    Logprob,
    LogprobDict,
    RequestMetrics,
    StreamPiece,
)
from bestiary.core.runtime.containment import cause, contained
from bestiary.core.runtime.request import Request
from bestiary.core.text.detokenize import Detokenizer
from bestiary.core.text.tokenizer import Tokenizer


class TextAnswer:
    """Collects one request's results.

    Tokens are decoded when someone needs the text: at once with stop strings, else when a piece or the end is asked for.
    Pieces may be asked for in another thread than the one that steps; it sees the tokens of steps that were taken in. If
    decoding fails there, the piece has the text so far, and the engine is told with the next token, which ends the request.

    Args:
        request: the request, before it is submitted.
        prompt: its text, if it had one.
        tokenizer: None leaves the text empty.
        index: which of the prompt's answers it is.
        on_news: called when a token came, and at the end.
    """

    def __init__(
        self,
        request: Request,
        tokenizer: Tokenizer | None,
        *,
        index: int = 0,
        on_news: Callable[[], None] | None = None,
    ) -> None:
        params = request.params
        self.request, self._tokenizer, self.index, self._on_news = request, tokenizer, index, on_news
        self.watches = bool(params.stop) or params.logprobs is not None or on_news is not None or request.streams
        self._text: Detokenizer | None = None
        if tokenizer is not None and params.detokenize:
            self._text = Detokenizer(
                tokenizer,
                request.prompt,
                stops=params.stop,
                skip_special_tokens=params.skip_special_tokens,
                include_stop=params.include_stop_str_in_output,
            )
        self._tokens: list[int] = []  # those the engine told of
        self._decoding = threading.Lock()
        self._failure: BaseException | None = None  # of the decoding
        self._pushed = 0  # output tokens the detokenizer has seen
        self._given_text = self._given_tokens = 0  # what pieces have carried
        self.metrics = RequestMetrics(time.monotonic())
        self._logprobs: list[LogprobDict] | None = None if params.logprobs is None else []
        self.prompt_logprobs: list[LogprobDict | None] | None = None if params.prompt_logprobs is None else [None]
        self.cumulative_logprob = 0.0

    @property
    def finished(self) -> bool:
        """The answer is complete."""
        return self.metrics.finished_time is not None

    def first_token(self, now: float) -> None:
        self.metrics.first_token_time = now

    def prompt_scored(self, entries: list[LogprobDict]) -> None:
        if self.prompt_logprobs is not None:
            self.prompt_logprobs += [self._named(entry) for entry in entries]

    def added(self, logprobs: LogprobDict | None) -> str | None:
        token = int(self.request.tokens[-1])
        self._tokens.append(token)
        if self._on_news is not None:
            self._on_news()
        if self._logprobs is not None and logprobs is not None:
            self._logprobs.append(self._named(logprobs))
            self.cumulative_logprob += logprobs[token].logprob
        return self._push() if self.request.params.stop or self._failure is not None else None

    def end(self, now: float) -> None:
        try:
            self._tokens += self.request.output[len(self._tokens) :]
            self._end_text()
        except BaseException as error:
            # Whoever looks from another thread must not find an answer finished that then turns out to have failed.
            self.request.finish_reason, self.request.stop_reason = "error", cause(error)
            raise
        finally:
            self.metrics.finished_time = now
            if self._on_news is not None:
                self._on_news()

    def _end_text(self) -> None:
        if self._text is None:
            return
        if self.request.finish_reason == "error":
            with suppress(Exception):  # it may be the text that failed
                self._push()
                self._text.finish()
            return
        by_string = isinstance(self.request.stop_reason, str)
        searched = self.request.num_output > self.request.params.min_tokens
        stop = None if by_string else self._push() or self._text.finish(search=searched)
        if stop is not None and self.request.finish_reason == "length":
            self.request.finish_reason, self.request.stop_reason = "stop", stop

    def has_news(self) -> bool:
        """A piece would carry text, or tokens where there is no text."""
        if self._text is None:
            return len(self._tokens) > self._given_tokens
        self._catch_up()
        return len(self._text.text) > self._given_text

    def piece(self, last: bool) -> StreamPiece:
        """What came since the last piece.

        Args:
            last: the answer is complete.
        """
        self._catch_up()
        text = self._text.text if self._text is not None else ""
        tokens = self._tokens[self._given_tokens :]
        piece = StreamPiece(
            text=text[self._given_text :],
            token_ids=tokens,
            finish_reason=self.request.finish_reason if last else None,
            stop_reason=self.request.stop_reason if last else None,
            index=self.index,
        )
        self._given_text = len(text)
        self._given_tokens += len(tokens)
        return piece

    def output(self) -> CompletionOutput:
        """Everything so far."""
        request = self.request
        return CompletionOutput(
            index=self.index,
            text=self._text.text if self._text is not None else "",
            token_ids=request.output,
            logprobs=self._logprobs,
            cumulative_logprob=None if self._logprobs is None else self.cumulative_logprob,
            finish_reason=request.finish_reason,
            stop_reason=request.stop_reason,
        )

    def _catch_up(self) -> None:
        """Decode the tokens that came, for a reader: a failure is the engine's to tell, at the request's end."""
        try:
            self._push()
        except BaseException as error:
            contained(error)

    def _push(self) -> str | None:
        """Decode the tokens that came; a token that ended the request has no text. The stop string that did, if one did.

        Once that has failed, it does so again: what comes after a gap would be another text.
        """
        with self._decoding:
            if self._failure is not None:
                raise self._failure
            new = self._tokens[self._pushed :]
            if self._text is None or not new:
                return None
            try:
                return self._decode(self._text, new)
            except BaseException as error:
                self._failure = contained(error)
                raise

    def _decode(self, text: Detokenizer, new: list[int]) -> str | None:
        request = self.request
        unsearched = max(0, request.params.min_tokens - self._pushed)
        self._pushed += len(new)
        shown = request.params.include_stop_str_in_output and new[-1] in request.params.stop_token_ids
        if request.finish_reason == "stop" and new[-1] in request.params.end_token_ids and not shown:
            new.pop()
        if new[:unsearched]:
            text.push(new[:unsearched], search=False)
        return text.push(new[unsearched:]) if new[unsearched:] else None

    def _named(self, entry: LogprobDict) -> LogprobDict:
        if self._tokenizer is None:
            return entry
        text = self._tokenizer.token_text
        return {token: Logprob(value.logprob, value.rank, text(token)) for token, value in entry.items()}
