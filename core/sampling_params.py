"""How tokens are chosen and when a request ends: what a user may say, and the concrete values a request runs with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final, cast

from bestiary.core import sampling_checks as checks
from bestiary.core.errors import ConfigError, RequestError

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

    def __post_init__(self) -> None:
        for name in checks.FLOATS:
            if getattr(self, name) is not None or name not in _OPEN:
                self._keep(name, checks.number(name, getattr(self, name)))
        for name in checks.INTS:
            value = getattr(self, name)
            if value is not UNSET and (value is not None or name not in _OPEN):
                checks.integer(name, value)
        for name in checks.BOOLS:
            checks.boolean(name, getattr(self, name))
        self._keep("stop", checks.stop_strings(self.stop))
        self._keep("stop_token_ids", checks.stop_token_ids(self.stop_token_ids))
        self._keep("logit_bias", checks.logit_bias(self.logit_bias))
        if isinstance(self.max_tokens, int) and self.min_tokens > self.max_tokens:
            raise checks.refuse("min_tokens", "more than max_tokens", self.min_tokens, f"at most {self.max_tokens}")
        if self.stop and not self.detokenize:
            raise checks.refuse("stop", "stop strings are searched in the text", "detokenize=False", "detokenize=True")

    def _keep(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def resolve(
        self,
        defaults: Mapping[str, Any] | None = None,
        *,
        vocab_size: int,
        eos_token_ids: Iterable[int] = (),
        seed: int = 0,
    ) -> ResolvedParams:
        """The concrete values of one request.

        Args:
            defaults: the model's generation_config.json, or nothing.
            vocab_size: width of the logits; every token id named here must be below it.
            eos_token_ids: the model's end tokens; they end a request unless ``ignore_eos``.
            seed: used when the user gave none.

        Raises:
            RequestError: a token id outside the vocabulary, or ``min_tokens`` above the resolved ``max_tokens``.
            ConfigError: a default that is out of range, by its name in generation_config.json.
        """
        said = self._with_defaults(defaults or {})
        stop_ids = frozenset(said.stop_token_ids or ())
        bias = dict(said.logit_bias or {})
        for name, ids in (("stop_token_ids", stop_ids), ("logit_bias", frozenset(bias))):
            if ids and max(ids) >= vocab_size:
                raise checks.refuse(name, "not in the vocabulary", max(ids), f"ids from 0 to {vocab_size - 1}")
        eos = frozenset() if said.ignore_eos else frozenset(eos_token_ids)
        temperature = 1.0 if said.temperature is None else said.temperature
        top_k = said.top_k or -1
        return ResolvedParams(
            temperature=0.0 if temperature < GREEDY_BELOW else temperature,
            top_k=-1 if top_k >= vocab_size else top_k,
            top_p=1.0 if said.top_p is None else said.top_p,
            min_p=said.min_p or 0.0,
            repetition_penalty=1.0 if said.repetition_penalty is None else said.repetition_penalty,
            presence_penalty=said.presence_penalty,
            frequency_penalty=said.frequency_penalty,
            seed=seed if said.seed is None else said.seed,
            max_tokens=cast("int | None", said.max_tokens),
            min_tokens=said.min_tokens,
            stop=cast("tuple[str, ...]", said.stop),
            stop_token_ids=stop_ids,
            end_token_ids=stop_ids | eos,
            logprobs=said.logprobs,
            prompt_logprobs=said.prompt_logprobs,
            logit_bias=bias,
            skip_special_tokens=said.skip_special_tokens,
            detokenize=said.detokenize,
        )

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


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolvedParams:
    """The values a request runs with: nothing left open. ``end_token_ids`` holds stop ids and end tokens together."""

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

    @property
    def greedy(self) -> bool:
        """The likeliest token is taken, without a random number."""
        return self.temperature == 0.0

    @property
    def penalized(self) -> bool:
        """Some penalty changes the logits, so token counts are kept."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0
