"""Type and range checks of sampling parameters: every refusal names the field, what was found and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from bestiary.core.errors import RequestError, shown

MAX_INT: Final = 2**31 - 1
MAX_LOGPROBS: Final = 20
MAX_STOP_STRINGS: Final = 16
MAX_STOP_BYTES: Final = 256
MAX_STOP_TOKEN_IDS: Final = 1024
MAX_LOGIT_BIAS: Final = 1024
MAX_BIAS: Final = 100.0
MAX_ANSWERS: Final = 16
MAX_BAD_WORDS: Final = 256
MAX_PROCESSORS: Final = 16
MAX_CHOICES: Final = 1024
MAX_SALT_BYTES: Final = 256
MAX_ALLOWED_TOKEN_IDS: Final = 1 << 20


class NumberRange:
    """Bounds of a float field; ``above`` leaves the lower bound itself out."""

    def __init__(self, low: float, high: float, *, above: bool = False) -> None:
        self.low, self.high, self.above = low, high, above

    def __contains__(self, value: float) -> bool:
        return (self.low < value if self.above else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        return f"a number {'above' if self.above else 'from'} {self.low:g} to {self.high:g}"


FLOATS: Final = {
    "temperature": NumberRange(0, 100),
    "top_p": NumberRange(0, 1, above=True),
    "min_p": NumberRange(0, 1),
    "repetition_penalty": NumberRange(0, 10, above=True),
    "presence_penalty": NumberRange(-2, 2),
    "frequency_penalty": NumberRange(-2, 2),
    "cache_ttl": NumberRange(0, 1e9, above=True),
}
INTS: Final = {
    "top_k": (-1, MAX_INT),
    "seed": (0, 2**64 - 1),
    "max_tokens": (1, MAX_INT),
    "min_tokens": (0, MAX_INT),
    "logprobs": (0, MAX_LOGPROBS),
    "prompt_logprobs": (0, MAX_LOGPROBS),
    "n": (1, MAX_ANSWERS),
    "best_of": (1, MAX_ANSWERS),
    "no_repeat_ngram_size": (0, MAX_INT),
    "truncate_prompt_tokens": (1, MAX_INT),
    "cache_priority": (0, 100),
    "priority": (-MAX_INT - 1, MAX_INT),
}
BOOLS: Final = ("ignore_eos", "skip_special_tokens", "detokenize", "include_stop_str_in_output", "reuse_prefix")
# Of beam search alone.
BEAM_WIDTH: Final = (1, 64)
LENGTH_PENALTY: Final = NumberRange(-10, 10)


def refuse(field: str, problem: str, found: object, expected: str, hint: str | None = None) -> RequestError:
    """The error for a bad field: code ``E-REQ-<FIELD>``, the found value cut to a readable length."""
    code = f"E-REQ-{field.upper().replace('_', '-')}"
    hint = hint or f"correct {field}, or leave it out"
    return RequestError(code, field, problem, found=shown(found), expected=expected, hint=hint)


def number(field: str, value: object, allowed: NumberRange) -> float:
    """``value`` as a float within the range."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise refuse(field, "not a number", value, str(allowed))
    if value not in allowed or not math.isfinite(value):
        raise refuse(field, "out of range", value, str(allowed))
    return float(value)


def integer(field: str, value: object, allowed: tuple[int, int]) -> int:
    """``value`` as an int within the range, both ends included."""
    low, high = allowed
    expected = f"an integer from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise refuse(field, "not an integer", value, expected)
    if not low <= value <= high:
        raise refuse(field, "out of range", value, expected)
    return value


def boolean(field: str, value: object) -> bool:
    """``value`` if it is True or False."""
    if not isinstance(value, bool):
        raise refuse(field, "not a boolean", value, "True or False")
    return value


def stop_strings(value: object) -> tuple[str, ...]:
    """One string, or several, as a tuple without repeats."""
    return strings("stop", (value,) if isinstance(value, str) else value, at_most=MAX_STOP_STRINGS)


def bad_words(value: object) -> tuple[str, ...]:
    """A list of strings as a tuple without repeats."""
    return strings("bad_words", value, at_most=MAX_BAD_WORDS)


def choices(value: object) -> tuple[str, ...]:
    """The strings of ``Guided.choice``, at least one, as a tuple without repeats; their lengths are checked there."""
    if isinstance(value, str | bytes) or not isinstance(value, Sequence) or not 1 <= len(value) <= MAX_CHOICES:
        raise refuse("guided", "choice is not a list of strings", value, f"1 to {MAX_CHOICES} strings")
    wrong = [each for each in value if not isinstance(each, str)]
    if wrong:
        raise refuse("guided", "choice holds what is not a string", wrong[0], f"1 to {MAX_CHOICES} strings")
    return tuple(dict.fromkeys(value))


def strings(field: str, value: object, *, at_most: int) -> tuple[str, ...]:
    """A list of strings of up to 256 bytes, or None, as a tuple without repeats."""
    if value is None:
        return ()
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise refuse(field, "not a list of strings", value, "a list of strings")
    if len(value) > at_most:
        raise refuse(field, "too many strings", len(value), f"at most {at_most}")
    for string in value:
        if not isinstance(string, str):
            raise refuse(field, "not a string", string, "a list of strings")
        size = len(string.encode("utf-8", "surrogatepass"))
        if not 1 <= size <= MAX_STOP_BYTES:
            raise refuse(field, "a string of the wrong length", f"{size} bytes", f"1 to {MAX_STOP_BYTES} bytes")
    return tuple(dict.fromkeys(value))


def token_id(field: str, value: object) -> int:
    """``value`` as a token id; the vocabulary's size is checked where it is known."""
    expected = "a token id, an integer from 0"
    if isinstance(value, bool) or not isinstance(value, int):
        raise refuse(field, "not a token id", value, expected)
    if not 0 <= value <= MAX_INT:
        raise refuse(field, "not a token id", value, expected)
    return value


def token_ids(field: str, value: object, *, at_most: int = MAX_STOP_TOKEN_IDS) -> tuple[int, ...]:
    """A list of token ids, or None, as a tuple."""
    if value is None:
        return ()
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise refuse(field, "not a list of token ids", value, "a list of integers")
    if len(value) > at_most:
        raise refuse(field, "too many token ids", len(value), f"at most {at_most}")
    return tuple(token_id(field, each) for each in value)


def allowed_token_ids(value: object) -> tuple[int, ...] | None:
    """A list of at least one token id, in ascending order without repeats; None stays None."""
    ids = token_ids("allowed_token_ids", value, at_most=MAX_ALLOWED_TOKEN_IDS)
    if value is not None and not ids:
        raise refuse("allowed_token_ids", "allows no token", value, "at least one token id, or None for all")
    return tuple(sorted(set(ids))) if ids else None


def logits_processors(value: object) -> tuple[object, ...]:
    """A list of functions and names, or None, as a tuple; whether a name is registered is checked by the engine."""
    if value is None:
        return ()
    expected = "a list of functions and of names of registered ones"
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise refuse("logits_processors", "not a list", value, expected)
    if len(value) > MAX_PROCESSORS:
        raise refuse("logits_processors", "too many processors", len(value), f"at most {MAX_PROCESSORS}")
    for each in value:
        if not (callable(each) or (isinstance(each, str) and each)):
            raise refuse("logits_processors", "neither a function nor a name", each, expected)
    return tuple(value)


def cache_salt(value: object) -> str | None:
    """``value`` if it is None or a string of 1 to 256 bytes of UTF-8."""
    if value is None:
        return None
    expected = f"None, or 1 to {MAX_SALT_BYTES} bytes of UTF-8"
    if not isinstance(value, str):
        raise refuse("cache_salt", "not a string", value, expected)
    try:
        size = len(value.encode("utf-8"))
    except UnicodeEncodeError:
        raise refuse("cache_salt", "not valid Unicode", value, expected) from None
    if not 1 <= size <= MAX_SALT_BYTES:
        raise refuse("cache_salt", "of the wrong length", f"{size} bytes", expected)
    return value


def logit_bias(value: object) -> dict[int, float]:
    """``{token id: number}``, each from -100 to 100."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise refuse("logit_bias", "not a mapping", value, "{token id: number}")
    if len(value) > MAX_LOGIT_BIAS:
        raise refuse("logit_bias", "too many tokens", len(value), f"at most {MAX_LOGIT_BIAS}")
    bias: dict[int, float] = {}
    for token, amount in value.items():
        allowed = NumberRange(-MAX_BIAS, MAX_BIAS)
        if isinstance(amount, bool) or not isinstance(amount, int | float) or amount not in allowed:
            raise refuse("logit_bias", f"a bad value for token {token!r:.40}", amount, str(allowed))
        bias[token_id("logit_bias", token)] = float(amount)
    return bias
