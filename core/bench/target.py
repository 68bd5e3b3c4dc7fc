"""What a load goes to: an engine in this process, or a server at a URL."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from bestiary.core.bench.asks import Ask
from bestiary.core.bench.records import Ending, Record
from bestiary.core.runtime.steps import StepRecord
from bestiary.core.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class EngineSide:
    """What an engine did in one run.

    Args:
        steps: in their order; ``dropped`` earlier ones were not kept.
        blocks: of the KV cache, all groups together.
        preemptions: how often a running request gave up its blocks.
    """

    steps: tuple[StepRecord, ...]
    dropped: int
    blocks: int
    preemptions: int


@dataclass(frozen=True)
class About:
    """What a target is.

    Args:
        kind: ``engine`` or ``url``.
        model: what it runs.
        device: where; None if nobody knows.
        facts: its options and sizes.
    """

    name: str
    kind: str
    model: str
    device: str | None
    facts: Mapping[str, str | int | float | bool | None]


class Target(Protocol):
    """Answers requests."""

    about: About
    longest: int | None
    """Most tokens of a request, prompt and answer; None if nobody knows."""
    tokenizer: Tokenizer | None
    vocab_size: int | None
    forgets: bool
    """Whether ``begin`` empties its prefix cache."""

    def begin(self) -> None:
        """A run begins: earlier runs' prefixes are forgotten where that can be done, and steps are recorded."""

    def end(self) -> EngineSide | None:
        """The run is over: what the engine did in it; None of a server."""

    async def answer(self, ask: Ask, arrived: Callable[[int], None]) -> Ending:
        """Send a request and wait for its end. Failures are endings too.

        Args:
            arrived: told of each piece, as soon as it is here, how many tokens it holds.
        """

    def batch(self, asks: Sequence[Ask]) -> list[Record] | None:
        """Answers to all requests at once, as fast as they come, without reading along; None where there is no such call."""

    async def close(self) -> None:
        """Let go of connections."""
