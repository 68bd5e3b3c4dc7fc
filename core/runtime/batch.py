"""What the scheduler decided for one step: some tokens of some requests, packed."""

from __future__ import annotations

from dataclasses import dataclass

from bestiary.core.runtime.request import Request


@dataclass(frozen=True, slots=True)
class Segment:
    """``request.tokens[start:start + count]`` run this step at positions ``start…``.

    ``rows`` are the offsets within the segment whose logits are wanted: the last one where a token is to be sampled,
    all where prompt logprobs are wanted, none for an unfinished chunk.
    """

    request: Request
    start: int
    count: int
    rows: range

    @property
    def samples(self) -> bool:
        """The last row's logits choose the request's next token."""
        return self.start + self.count == len(self.request.tokens)


@dataclass(frozen=True, slots=True)
class Batch:
    """One step: segments in the order in which their tokens and logits rows are packed."""

    segments: tuple[Segment, ...]

    @property
    def num_tokens(self) -> int:
        """T, the tokens that run."""
        return sum([segment.count for segment in self.segments])

    @property
    def num_rows(self) -> int:
        """Rows of logits."""
        return sum([len(segment.rows) for segment in self.segments])
