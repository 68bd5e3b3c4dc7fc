"""How tokens are chosen and when a request ends: what a user may say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from bestiary.core import sampling_checks as checks
from bestiary.core.guided import Guided

if TYPE_CHECKING:
    from bestiary.core.token_params import Processor

__all__ = ["UNSET", "SamplingParams", "Unset"]


class Unset(Enum):
    """The type of :data:`UNSET`: the user said nothing, so the model's generation_config decides."""

    UNSET = "unset"

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = Unset.UNSET
# None means "not said" or "no limit" in these.
_OPEN: Final = frozenset(
    {
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "repetition_penalty",
        "seed",
        "max_tokens",
        "logprobs",
        "prompt_logprobs",
        "best_of",
        "truncate_prompt_tokens",
        "cache_ttl",
    }
)


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """What a user says about a request. Unset values come from the model's generation_config, then from the right column.

    ===================== ============================================ ===========================================
    field                 range                                        when neither says
    ===================== ============================================ ===========================================
    temperature           0 … 100; below 1e-5 takes the likeliest      1.0 (0 if its generation_config doesn't sample)
    top_k                 1 …; 0 or -1 keep all                        -1
    top_p                 above 0, up to 1                             1.0
    min_p                 0 … 1, relative to the likeliest             0.0
    repetition_penalty    above 0, up to 10; prompt and output         1.0
    presence_penalty      -2 … 2; output only                          0.0
    frequency_penalty     -2 … 2; output only, times the count         0.0
    seed                  0 … 2**64 - 1                                drawn from the engine's seed
    max_tokens            1 …; None: until the context is full         16
    min_tokens            0 … max_tokens                               0
    stop                  a string or up to 16, each up to 256 bytes   none
    stop_token_ids        up to 1024 ids of the vocabulary             none (end tokens always apply)
    ignore_eos            bool                                         False
    logprobs              0 … 20 likeliest besides the chosen one      not returned
    prompt_logprobs       0 … 20                                       not returned
    logit_bias            {id: -100 … 100}, up to 1024                 none
    skip_special_tokens   bool                                         True
    detokenize            bool                                         True
    ===================== ============================================ ===========================================

    What ends an answer comes after its first ``min_tokens`` tokens: end tokens are out until then, and a stop string ends it
    that is complete with a later token, even if it began before; one that is complete by then is text like any other. Of
    those that are complete with the same character the longest counts.

    These belong to the request alone; no generation_config sets them:

    n: 1 … 16 answers, which share the prompt's keys and values. Answer i is drawn with ``seed + i`` (modulo 2**64), so
        answer 0 is the one that ``n=1`` gives. More than one needs a temperature: greedy ones would all be the same.
    best_of: n … 16 answers are generated and the n with the greatest mean log-probability a token returned, best
        first. None: n, in the order of their seeds.
    bad_words: up to 256 strings, each up to 256 bytes, that the answer won't complete: the last token of a word, tokenized
        both with and without a space before it, can't follow its others, of which some may be the prompt's. Spellings in
        other tokens are not found.
    allowed_token_ids: the only tokens an answer may have, at least one. End tokens too must be among them.
    no_repeat_ngram_size: no run of so many tokens occurs twice in prompt and answer; 0 for off.
    logits_processors: up to 16 functions, or names of registered ones, called in this order with the prompt's token ids,
        the answer's so far and the next token's logits ([V] float32, theirs to change); each returns logits [V].
    guided: the grammar that the answer must match, a ``Guided``.
    include_stop_str_in_output: the text keeps the stop string that ended it, or the stop token's own text.
    truncate_prompt_tokens: 1 …; only so many of the prompt's last tokens are used. None: all.
    reuse_prefix: the prompt's keys and values may come from the prefix cache and go there.
    cache_salt: 1 … 256 bytes; prefixes are reused only among requests with an equal salt. None is a salt of its own.
    cache_priority: 0 … 100; of the cached blocks those of the lowest priority are dropped first.
    cache_ttl: seconds, above 0, after which the prefixes it left in the cache are forgotten. None: never.
    priority: -2**31 … 2**31 - 1; the scheduler's priority policy runs lower ones sooner.

    Logits are changed in this order: logit_bias, end tokens before min_tokens, no_repeat_ngram_size, bad_words, penalties,
    allowed_token_ids, logits_processors, guided; then temperature, top_k, top_p, min_p.

    Raises:
        RequestError: ``E-REQ-<FIELD>`` for a value of the wrong type or range, the field named.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    max_tokens: int | Unset | None = UNSET
    min_tokens: int = 0
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: Mapping[int, float] | None = None
    skip_special_tokens: bool = True
    detokenize: bool = True
    n: int = 1
    best_of: int | None = None
    bad_words: Sequence[str] | None = None
    allowed_token_ids: Sequence[int] | None = None
    no_repeat_ngram_size: int = 0
    logits_processors: Sequence[Processor | str] | None = None
    guided: Guided | None = None
    include_stop_str_in_output: bool = False
    truncate_prompt_tokens: int | None = None
    reuse_prefix: bool = True
    cache_salt: str | None = None
    cache_priority: int = 35
    cache_ttl: float | None = None
    priority: int = 0

    def __post_init__(self) -> None:
        for name, allowed in checks.FLOATS.items():
            if getattr(self, name) is not None or name not in _OPEN:
                self._keep(name, checks.number(name, getattr(self, name), allowed))
        for name, bounds in checks.INTS.items():
            value = getattr(self, name)
            if value is not UNSET and (value is not None or name not in _OPEN):
                checks.integer(name, value, bounds)
        for name in checks.BOOLS:
            checks.boolean(name, getattr(self, name))
        self._keep("stop", checks.stop_strings(self.stop))
        self._keep("stop_token_ids", checks.token_ids("stop_token_ids", self.stop_token_ids))
        self._keep("logit_bias", checks.logit_bias(self.logit_bias))
        self._keep("bad_words", checks.bad_words(self.bad_words))
        self._keep("allowed_token_ids", checks.allowed_token_ids(self.allowed_token_ids))
        self._keep("logits_processors", checks.logits_processors(self.logits_processors))
        checks.cache_salt(self.cache_salt)
        if self.guided is not None and not isinstance(self.guided, Guided):
            raise checks.refuse("guided", "not a grammar", self.guided, "Guided(…)")
        self._check_together()

    def _check_together(self) -> None:
        if isinstance(self.max_tokens, int) and self.min_tokens > self.max_tokens:
            raise checks.refuse("min_tokens", "more than max_tokens", self.min_tokens, f"at most {self.max_tokens}")
        if self.stop and not self.detokenize:
            raise checks.refuse("stop", "stop strings are searched in the text", "detokenize=False", "detokenize=True")
        if self.best_of is not None and self.best_of < self.n:
            raise checks.refuse("best_of", "less than n", self.best_of, f"at least {self.n}")

    def _keep(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)
