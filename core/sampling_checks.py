"""Type and range checks of sampling parameters: every refusal names the field, what was found and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from bestiary.core.errors import RequestError

MAX_INT: Final = 2**31 - 1
MAX_LOGPROBS: Final = 20
MAX_STOP_STRINGS: Final = 16
MAX_STOP_BYTES: Final = 256
MAX_STOP_TOKEN_IDS: Final = 1024
MAX_LOGIT_BIAS: Final = 1024
MAX_BIAS: Final = 100.0


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
}
INTS: Final = {
    "top_k": (-1, MAX_INT),
    "seed": (0, 2**64 - 1),
    "max_tokens": (1, MAX_INT),
    "min_tokens": (0, MAX_INT),
    "logprobs": (0, MAX_LOGPROBS),
    "prompt_logprobs": (0, MAX_LOGPROBS),
}
BOOLS: Final = ("ignore_eos", "skip_special_tokens", "detokenize")


def refuse(field: str, problem: str, found: object, expected: str, hint: str | None = None) -> RequestError:
    """The error for a bad field: code ``E-REQ-<FIELD>``, the found value cut to a readable length."""
    text = (
        repr(found) if not isinstance(found, int) or abs(found) < 10**40 else f"an integer of {found.bit_length()} bits"
    )
    if len(text) > 80:
        text = text[:77] + "…"
    code = f"E-REQ-{field.upper().replace('_', '-')}"
    return RequestError(code, field, problem, found=text, expected=expected, hint=hint)


def number(field: str, value: object) -> float:
    """``value`` as a float within the field's range."""
    allowed = FLOATS[field]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise refuse(field, "not a number", value, str(allowed))
    if value not in allowed or not math.isfinite(value):
        raise refuse(field, "out of range", value, str(allowed))
    return float(value)


def integer(field: str, value: object) -> int:
    """``value`` as an int within the field's range."""
    low, high = INTS[field]
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
    if value is None:
        return ()
    strings = (value,) if isinstance(value, str) else value
    if not isinstance(strings, Sequence):
        raise refuse("stop", "not a string or a list of strings", value, "a string or a list of strings")
    if len(strings) > MAX_STOP_STRINGS:
        raise refuse("stop", "too many stop strings", len(strings), f"at most {MAX_STOP_STRINGS}")
    for string in strings:
        if not isinstance(string, str):
            raise refuse("stop", "not a string", string, "a string or a list of strings")
        size = len(string.encode("utf-8", "surrogatepass"))
        if not 1 <= size <= MAX_STOP_BYTES:
            raise refuse("stop", "a stop string of the wrong length", f"{size} bytes", f"1 to {MAX_STOP_BYTES} bytes")
    return tuple(dict.fromkeys(strings))


def token_id(field: str, value: object) -> int:
    """``value`` as a token id; the vocabulary's size is checked where it is known."""
    expected = "a token id, an integer from 0"
    if isinstance(value, bool) or not isinstance(value, int):
        raise refuse(field, "not a token id", value, expected)
    if not 0 <= value <= MAX_INT:
        raise refuse(field, "not a token id", value, expected)
    return value


def stop_token_ids(value: object) -> tuple[int, ...]:
    """A list of token ids as a tuple."""
    if value is None:
        return ()
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise refuse("stop_token_ids", "not a list of token ids", value, "a list of integers")
    if len(value) > MAX_STOP_TOKEN_IDS:
        raise refuse("stop_token_ids", "too many token ids", len(value), f"at most {MAX_STOP_TOKEN_IDS}")
    return tuple(token_id("stop_token_ids", each) for each in value)


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
