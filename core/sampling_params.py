"""How tokens are chosen and when a request ends: what a user may say, and the concrete values a request runs with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, cast

from bestiary.core import sampling_checks as checks
from bestiary.core.bad_words import Encode, bad_token_ids
from bestiary.core.errors import ConfigError, RequestError
from bestiary.core.guided import Guided
from bestiary.core.resolved_params import ResolvedParams

if TYPE_CHECKING:
    from bestiary.core.resolved_params import Processor

__all__ = ["GREEDY_BELOW", "UNSET", "ResolvedParams", "SamplingParams", "Unset"]

# Dividing logits by less than this overflows float32 for ordinary logits; such a temperature means the argmax.
GREEDY_BELOW: Final = 1e-5
DEFAULT_MAX_TOKENS: Final = 16


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
# What resolving leaves as it is.
_AS_SAID: Final = (
    "presence_penalty",
    "frequency_penalty",
    "min_tokens",
    "stop",
    "logprobs",
    "prompt_logprobs",
    "skip_special_tokens",
    "detokenize",
    "n",
    "allowed_token_ids",
    "no_repeat_ngram_size",
    "logits_processors",
    "guided",
    "include_stop_str_in_output",
    "truncate_prompt_tokens",
    "reuse_prefix",
    "cache_salt",
    "cache_priority",
    "cache_ttl",
    "priority",
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

    def resolve(
        self,
        defaults: Mapping[str, Any] | None = None,
        *,
        vocab_size: int,
        eos_token_ids: Iterable[int] = (),
        seed: int = 0,
        encode: Encode | None = None,
    ) -> ResolvedParams:
        """The concrete values of one request.

        Args:
            defaults: the model's generation_config.json, or nothing.
            vocab_size: width of the logits; every token id named here must be below it.
            eos_token_ids: the model's end tokens; they end a request unless ``ignore_eos``.
            seed: used when the user gave none.
            encode: text → token ids without special tokens, for ``bad_words``; None where there is no tokenizer.

        Raises:
            RequestError: a token id outside the vocabulary, ``min_tokens`` above the resolved ``max_tokens``, several
                answers without a temperature, bad words without a tokenizer, or no token left to choose.
            ConfigError: a default that is out of range, by its name in generation_config.json.
        """
        said = self._with_defaults(defaults or {})
        stop_ids = frozenset(said.stop_token_ids or ())
        bad = bad_token_ids(said.bad_words or (), encode)
        for name, ids in (
            ("stop_token_ids", stop_ids),
            ("logit_bias", said.logit_bias or ()),
            ("allowed_token_ids", said.allowed_token_ids or ()),
            ("bad_words", [token for tokens in bad for token in tokens]),
        ):
            if ids and max(ids) >= vocab_size:
                raise checks.refuse(name, "not in the vocabulary", max(ids), f"ids from 0 to {vocab_size - 1}")
        temperature = 1.0 if said.temperature is None else said.temperature
        top_k = said.top_k or -1
        resolved = ResolvedParams(
            temperature=0.0 if temperature < GREEDY_BELOW else temperature,
            top_k=-1 if top_k >= vocab_size else top_k,
            top_p=1.0 if said.top_p is None else said.top_p,
            min_p=said.min_p or 0.0,
            repetition_penalty=1.0 if said.repetition_penalty is None else said.repetition_penalty,
            seed=seed if said.seed is None else said.seed,
            max_tokens=cast("int | None", said.max_tokens),
            stop_token_ids=stop_ids,
            end_token_ids=stop_ids if said.ignore_eos else stop_ids | frozenset(eos_token_ids),
            logit_bias=dict(said.logit_bias or {}),
            best_of=said.n if said.best_of is None else said.best_of,
            bad_token_ids=bad,
            **{name: getattr(said, name) for name in _AS_SAID},
        )
        _check_resolved(resolved)
        return resolved

    def _with_defaults(self, defaults: Mapping[str, Any]) -> SamplingParams:
        """Self, with what the user left open taken from a generation_config."""
        found: dict[str, Any] = {
            name: defaults[name]
            for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
            if getattr(self, name) is None and defaults.get(name) is not None
        }
        samples = defaults.get("do_sample")
        if self.temperature is None and defaults and (samples is False or not (samples or "temperature" in found)):
            found["temperature"] = 0.0  # a generation_config that does not ask for sampling means the likeliest token
        if self.max_tokens is UNSET:
            found["max_tokens"] = (
                DEFAULT_MAX_TOKENS if defaults.get("max_new_tokens") is None else defaults["max_new_tokens"]
            )
        try:
            return replace(self, **found)
        except RequestError as error:
            if error.subject == "min_tokens":
                raise
            name = "max_new_tokens" if error.subject == "max_tokens" else error.subject
            parts = {"found": error.found, "expected": error.expected}
            raise ConfigError("E-CFG-GENERATION", f"generation_config.json, {name}", error.problem, **parts) from None


def _check_resolved(params: ResolvedParams) -> None:
    """Refuse what can be seen to be pointless only with the model's defaults."""
    if params.greedy and params.best_of > 1:
        field = "n" if params.n > 1 else "best_of"
        hint = "greedy answers would all be the same; give a temperature"
        raise checks.refuse(field, "several answers need a temperature", params.best_of, "1 at temperature 0", hint)
    if params.allowed_token_ids is not None:
        never = {tokens[0] for tokens in params.bad_token_ids if len(tokens) == 1}
        never |= params.end_token_ids if params.min_tokens else frozenset()
        if never.issuperset(params.allowed_token_ids):
            expected = "a token that bad_words and min_tokens leave"
            raise checks.refuse("allowed_token_ids", "no token is left", params.allowed_token_ids, expected)
