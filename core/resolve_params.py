"""From what a user said, and a model's defaults, to the values a request runs with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final, cast

from bestiary.core import sampling_checks as checks
from bestiary.core.bad_words import Encode, bad_token_ids
from bestiary.core.errors import ConfigError, RequestError
from bestiary.core.resolved_params import ResolvedParams
from bestiary.core.sampling_params import UNSET, SamplingParams

# Dividing logits by less than this overflows float32 for ordinary logits; such a temperature means the argmax.
GREEDY_BELOW: Final = 1e-5
DEFAULT_MAX_TOKENS: Final = 16
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


def resolve(
    params: SamplingParams,
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
    said = _with_defaults(params, defaults or {})
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


def check_defaults(defaults: Mapping[str, Any]) -> None:
    """Refuse a generation_config.json whose sampling defaults could serve no request (ConfigError)."""
    _with_defaults(SamplingParams(), defaults)


def _with_defaults(params: SamplingParams, defaults: Mapping[str, Any]) -> SamplingParams:
    """The parameters, with what the user left open taken from a generation_config."""
    found: dict[str, Any] = {
        name: defaults[name]
        for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        if getattr(params, name) is None and defaults.get(name) is not None
    }
    samples = defaults.get("do_sample")
    if params.temperature is None and defaults and (samples is False or not (samples or "temperature" in found)):
        found["temperature"] = 0.0  # a generation_config that does not ask for sampling means the likeliest token
    if params.max_tokens is UNSET:
        found["max_tokens"] = (
            DEFAULT_MAX_TOKENS if defaults.get("max_new_tokens") is None else defaults["max_new_tokens"]
        )
    try:
        return replace(params, **found)
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
