"""A request's answer as it grows: text, log-probabilities, times."""

from __future__ import annotations

import time

from bestiary.core.outputs import (
    CompletionOutput,
    Logprob,
    LogprobDict,
    RequestMetrics,
    RequestOutput,
    StreamPiece,
)
from bestiary.core.runtime.request import Request
from bestiary.core.text.detokenize import Detokenizer
from bestiary.core.text.tokenizer import Tokenizer


class TextAnswer:
    """Collects one request's results.

    Tokens are decoded when someone needs the text: at once with stop strings, else when a piece or the end is asked for.

    Args:
        request: the request, before it is submitted.
        prompt: its text, if it had one.
        tokenizer: None leaves the text empty.
    """

    def __init__(self, request: Request, prompt: str | None, tokenizer: Tokenizer | None) -> None:
        params = request.params
        self.request, self._prompt, self._tokenizer = request, prompt, tokenizer
        self.watches = bool(params.stop) or params.logprobs is not None
        self._text: Detokenizer | None = None
        if tokenizer is not None and params.detokenize:
            skip = params.skip_special_tokens
            self._text = Detokenizer(tokenizer, request.tokens, stops=params.stop, skip_special_tokens=skip)
        self._pushed = 0  # output tokens the detokenizer has seen
        self._given_text = self._given_tokens = 0  # what pieces have carried
        self._metrics = RequestMetrics(time.monotonic())
        self._logprobs: list[LogprobDict] | None = None if params.logprobs is None else []
        self._prompt_logprobs: list[LogprobDict | None] | None = None if params.prompt_logprobs is None else [None]
        self._cumulative = 0.0

    @property
    def finished(self) -> bool:
        """The answer is complete."""
        return self._metrics.finished_time is not None

    def first_token(self, now: float) -> None:
        self._metrics.first_token_time = now

    def prompt_scored(self, entries: list[LogprobDict]) -> None:
        if self._prompt_logprobs is not None:
            self._prompt_logprobs += [self._named(entry) for entry in entries]

    def added(self, logprobs: LogprobDict | None) -> str | None:
        if self._logprobs is not None and logprobs is not None:
            self._logprobs.append(self._named(logprobs))
            self._cumulative += logprobs[self.request.tokens[-1]].logprob
        return self._push() if self.request.params.stop else None

    def end(self, now: float) -> None:
        self._metrics.finished_time = now
        if self._text is None or self.request.finish_reason == "error":
            return
        by_string = isinstance(self.request.stop_reason, str)
        stop = None if by_string else self._push() or self._text.finish()
        if stop is not None and self.request.finish_reason == "length":
            self.request.finish_reason, self.request.stop_reason = "stop", stop

    def has_news(self) -> bool:
        """A piece would carry text, or tokens where there is no text."""
        if self._text is None:
            return self.request.num_output > self._given_tokens
        self._push()
        return len(self._text.text) > self._given_text

    def piece(self) -> StreamPiece:
        """What came since the last piece."""
        if not self.finished:
            self._push()
        text = self._text.text if self._text is not None else ""
        tokens = self.request.tokens[self.request.prompt_length + self._given_tokens :]
        piece = StreamPiece(
            text=text[self._given_text :],
            token_ids=tokens,
            finish_reason=self.request.finish_reason if self.finished else None,
            stop_reason=self.request.stop_reason if self.finished else None,
        )
        self._given_text = len(text)
        self._given_tokens += len(tokens)
        return piece

    def output(self) -> RequestOutput:
        """Everything so far."""
        request = self.request
        completion = CompletionOutput(
            index=0,
            text=self._text.text if self._text is not None else "",
            token_ids=request.output,
            logprobs=self._logprobs,
            cumulative_logprob=None if self._logprobs is None else self._cumulative,
            finish_reason=request.finish_reason,
            stop_reason=request.stop_reason,
        )
        return RequestOutput(
            request_id=request.id,
            prompt=self._prompt,
            prompt_token_ids=request.prompt,
            outputs=[completion],
            finished=self.finished,
            metrics=self._metrics,
            prompt_logprobs=self._prompt_logprobs,
            num_cached_tokens=request.num_cached,
        )

    def _push(self) -> str | None:
        """Decode the tokens that came; a token that ended the request has no text. The stop string that did, if one did."""
        request = self.request
        new = request.tokens[request.prompt_length + self._pushed :]
        if self._text is None or not new:
            return None
        unsearched = max(0, request.params.min_tokens - self._pushed)
        self._pushed += len(new)
        if request.finish_reason == "stop" and new[-1] in request.params.end_token_ids:
            new.pop()
        if new[:unsearched]:
            self._text.push(new[:unsearched], search=False)
        return self._text.push(new[unsearched:]) if new[unsearched:] else None

    def _named(self, entry: LogprobDict) -> LogprobDict:
        if self._tokenizer is None:
            return entry
        text = self._tokenizer.token_text
        return {token: Logprob(value.logprob, value.rank, text(token)) for token, value in entry.items()}
