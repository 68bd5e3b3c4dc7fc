"""What one request asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

Prompt = str | tuple[int, ...]


@dataclass(frozen=True)
class Ask:
    """A request before it is sent.

    Args:
        number: its place in the run, from 0.
        prompt: text or token ids.
        input_tokens: of the prompt, as far as it is known here; what the target says of it goes before.
        output_tokens: most tokens of the answer, and exactly so many with ``ignore_eos``.
    """

    number: int
    prompt: Prompt
    input_tokens: int | None
    output_tokens: int
    ignore_eos: bool


class Workload(Protocol):
    """Where requests come from.

    Attributes:
        left_out: conversations of a data set that can't be used.
    """

    left_out: int

    def asks(self, count: int, round: int) -> Sequence[Ask]:
        """The requests of one run. Runs of different rounds ask for the same lengths where those are drawn here, but never with
        the same prompts, so that none finds the prefixes of another in a cache."""

    def describe(self) -> str:
        """What is asked for, in a line."""
