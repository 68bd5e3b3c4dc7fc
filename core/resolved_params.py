"""The values a request runs with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from bestiary.core.token_params import TokenParams

if TYPE_CHECKING:
    from bestiary.core.guided import Guided
    from bestiary.core.token_params import Processor

__all__ = ["ResolvedParams"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolvedParams:
    """A request's parameters with nothing left open, named as in ``SamplingParams``.

    Args:
        end_token_ids: stop ids and end tokens together.
        best_of: how many answers are generated, at least ``n``.
        bad_token_ids: the token sequences of ``bad_words``; the last token of one may not follow the others.
        allowed_token_ids: in ascending order, without repeats; None allows all.
        logits_processors: functions, and names of registered ones.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int
    max_tokens: int | None
    min_tokens: int
    stop: tuple[str, ...]
    stop_token_ids: frozenset[int]
    end_token_ids: frozenset[int]
    logprobs: int | None
    prompt_logprobs: int | None
    logit_bias: Mapping[int, float]
    skip_special_tokens: bool
    detokenize: bool
    n: int
    best_of: int
    bad_token_ids: tuple[tuple[int, ...], ...]
    allowed_token_ids: tuple[int, ...] | None
    no_repeat_ngram_size: int
    logits_processors: tuple[Processor | str, ...]
    guided: Guided | None
    include_stop_str_in_output: bool
    truncate_prompt_tokens: int | None
    reuse_prefix: bool
    cache_salt: str | None
    cache_priority: int
    cache_ttl: float | None
    priority: int

    @property
    def greedy(self) -> bool:
        """The likeliest token is taken, without a random number."""
        return self.temperature == 0.0

    @property
    def for_ranks(self) -> TokenParams:
        """How the tokens are chosen, which is all that ranks are told."""
        return TokenParams(**{field.name: getattr(self, field.name) for field in fields(TokenParams)})

    @property
    def restricted(self) -> bool:
        """Some tokens are removed, or all logits replaced, by what the answer holds so far."""
        return bool(
            self.bad_token_ids
            or self.allowed_token_ids is not None
            or self.no_repeat_ngram_size
            or self.logits_processors
            or self.guided is not None
        )

    @property
    def plain(self) -> bool:
        """The token is the argmax of the logits as the model gave them, and nothing else is asked of them."""
        ends_late = bool(self.min_tokens and self.end_token_ids)
        scored = self.logprobs is not None or self.prompt_logprobs is not None
        changed = self.for_ranks.penalized or self.logit_bias or ends_late or self.restricted
        return self.greedy and not (changed or scored)

    @property
    def ranked(self) -> bool:
        """More answers are generated than returned, so each chosen token's log-probability is needed."""
        return self.best_of > self.n

    def answer(self, index: int) -> ResolvedParams:
        """Of answer ``index`` alone: one answer, drawn with ``seed + index`` modulo 2**64."""
        return replace(self, n=1, best_of=1, seed=(self.seed + index) % 2**64)
