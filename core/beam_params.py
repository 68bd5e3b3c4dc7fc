"""What a user may say about a beam search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bestiary.core import sampling_checks as checks

__all__ = ["BeamSearchParams"]


@dataclass(frozen=True, kw_only=True)
class BeamSearchParams:
    """The likeliest sequences rather than a drawn one, found as transformers finds them (``num_beams``, no sampling).

    A sequence's score is the sum of its tokens' log-probabilities divided by ``length ** length_penalty``, where length
    counts generated tokens, the end token included. The answers come best first.

    Args:
        beam_width: 1 … 64 sequences are followed, and as many answers returned.
        max_tokens: 1 … of an answer; None: until the context is full.
        length_penalty: -10 … 10; above 0 favours long answers, below 0 short ones.
        early_stopping: True: end as soon as there are ``beam_width`` ended sequences. False: end when the best running
            sequence, scored at its present length, can't beat the worst ended one. ``"never"``: end only when no
            continuation of any length can; with ``length_penalty`` above 0 it is scored at the greatest length.
        ignore_eos: go on after the model's end tokens.
        stop_token_ids: up to 1024 ids that end a sequence as the model's end tokens do.
        cache_salt, priority: as in ``SamplingParams``.

    Raises:
        RequestError: ``E-REQ-<FIELD>`` for a value of the wrong type or range, the field named.
    """

    beam_width: int
    max_tokens: int | None = 16
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    ignore_eos: bool = False
    stop_token_ids: Sequence[int] | None = None
    cache_salt: str | None = None
    priority: int = 0

    def __post_init__(self) -> None:
        checks.integer("beam_width", self.beam_width, checks.BEAM_WIDTH)
        if self.max_tokens is not None:
            checks.integer("max_tokens", self.max_tokens, checks.INTS["max_tokens"])
        penalty = checks.number("length_penalty", self.length_penalty, checks.LENGTH_PENALTY)
        object.__setattr__(self, "length_penalty", penalty)
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            raise checks.refuse("early_stopping", "not a choice", self.early_stopping, 'True, False or "never"')
        checks.boolean("ignore_eos", self.ignore_eos)
        checks.cache_salt(self.cache_salt)
        checks.integer("priority", self.priority, checks.INTS["priority"])
        object.__setattr__(self, "stop_token_ids", checks.token_ids("stop_token_ids", self.stop_token_ids))
