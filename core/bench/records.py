"""What became of one request."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from bestiary.core.bench.asks import Ask


@dataclass(frozen=True)
class Ending:
    """How an answer ended, as the target tells it.

    Args:
        finish_reason: the target's word; None if it failed.
        error: the kind of failure in a few words, by which failures are counted: ``http 429``, ``cut``, ``malformed``,
            ``connection``, ``timeout``, ``refused``, ``engine``.
        message: more about the failure.
        prompt_tokens, output_tokens, cached_tokens: as the target counts them; None where it does not say.
        preemptions: how often the engine computed it anew; None where it does not say.
    """

    finish_reason: str | None = None
    error: str | None = None
    message: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    preemptions: int | None = None


@dataclass
class Record:
    """A request and its times, in seconds of the monotonic clock.

    Args:
        due: when it was to be sent.
        sent: when it was. Latencies count from here; how late that was is a figure of its own.
        pieces: when something came, and of how many tokens.
        ended: when the answer was complete, or had failed.
    """

    ask: Ask
    due: float
    sent: float
    pieces: list[tuple[float, int]] = field(default_factory=list)
    ended: float = 0.0
    ending: Ending = field(default_factory=Ending)

    def arrived(self, tokens: int) -> None:
        """A piece of so many tokens came just now."""
        self.pieces.append((time.monotonic(), tokens))

    def end(self, ending: Ending) -> None:
        """It is over. Where the target counts other tokens than its pieces showed, they are taken to hold equally many."""
        self.ended, self.ending = time.monotonic(), ending
        count, told = len(self.pieces), ending.output_tokens
        if told is not None and count and told != sum(tokens for _, tokens in self.pieces):
            each, over = divmod(told, count)
            self.pieces = [(at, each + (place >= count - over)) for place, (at, _) in enumerate(self.pieces)]

    @property
    def failed(self) -> bool:
        return self.ending.error is not None

    @property
    def output_tokens(self) -> int:
        told = self.ending.output_tokens
        return sum(tokens for _, tokens in self.pieces) if told is None else told

    @property
    def prompt_tokens(self) -> int | None:
        told = self.ending.prompt_tokens
        return self.ask.input_tokens if told is None else told

    @property
    def short(self) -> bool:
        """It ended well, and before the length that was asked for in spite of end tokens."""
        return not self.failed and self.ask.ignore_eos and self.output_tokens < self.ask.output_tokens

    @property
    def first(self) -> float | None:
        """Seconds to the first token."""
        return self.pieces[0][0] - self.sent if self.pieces else None

    @property
    def total(self) -> float:
        """Seconds to the end of the answer."""
        return self.ended - self.sent

    @property
    def mean_interval(self) -> float | None:
        """Seconds a token after the first ones."""
        if not self.pieces:
            return None
        last = self.pieces[-1][0] if len(self.pieces) > 1 else self.ended
        later = self.output_tokens - self.pieces[0][1]
        return (last - self.pieces[0][0]) / later if later > 0 else None

    @property
    def intervals(self) -> list[float]:
        """Seconds before each token after the first piece; the k tokens of a piece share the time before it."""
        found: list[float] = []
        for (before, _), (at, tokens) in zip(self.pieces, self.pieces[1:], strict=False):
            found += [(at - before) / tokens] * tokens if tokens else []
        return found

    @property
    def longest_gap(self) -> float | None:
        """Seconds of the longest silence after the first piece."""
        gaps = [at - before for (before, _), (at, _) in zip(self.pieces, self.pieces[1:], strict=False)]
        return max(gaps, default=None)
