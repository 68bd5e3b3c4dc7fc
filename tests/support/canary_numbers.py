"""The canary's arithmetic: what a token stores, what a query sums up, and what a request alone must answer.

A stored key depends on the key before it, as a second layer's keys do, so that equal tokens after different prefixes store
different values. All numbers are integers below 2**24, exact in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from bestiary.core.resolve_params import resolve
from bestiary.core.resolved_params import ResolvedParams
from bestiary.core.runtime.cache_groups import CacheGroup
from bestiary.core.sampling_params import SamplingParams

PRIME = 4093
VOCAB = PRIME


def key(before: Any, token: Any, position: Any, group: int) -> Any:
    """What a token stores as its key after the key ``before`` of the token before it (0 for the first)."""
    return (1531 * before + 61 * token + 131 * position + 1009 * group + 1) % PRIME


def value(key: Any, position: Any) -> Any:
    """What it stores as its value."""
    return (key * (position + 3) + 17) % PRIME


def term(key: Any, value: Any, position: Any) -> Any:
    """What a stored token adds to the checksum of a query that sees it."""
    return (key * (position + 5)) % PRIME + (value * (3 * position + 1)) % PRIME


def first_seen(window: int | None, position: int) -> int:
    """The first position that a query sees."""
    return 0 if window is None else max(0, position - window + 1)


def params(**said: object) -> ResolvedParams:
    """Resolved parameters of a request that ends by length."""
    said.setdefault("temperature", 0.0)
    return resolve(SamplingParams(**said), vocab_size=VOCAB)  # type: ignore[arg-type]


def alone(groups: Sequence[CacheGroup], prompt: Sequence[int], length: int) -> list[int]:
    """The ``length`` tokens that follow a prompt, computed without blocks."""
    return list(_alone(tuple(group.window for group in groups), tuple(prompt), length)[0])


def scores_alone(groups: Sequence[CacheGroup], prompt: Sequence[int]) -> list[float]:
    """The canary's log-probabilities of a prompt's tokens from the second on."""
    sums = _alone(tuple(group.window for group in groups), tuple(prompt), 1)[1]
    return [score(sums[place - 1], prompt[place]) for place in range(1, len(prompt))]


def score(checksum: float, target: int) -> float:
    """A made-up log-probability that depends on all that the row saw."""
    return -float((checksum + target) % PRIME)


@lru_cache(maxsize=4096)
def _alone(windows: tuple[int | None, ...], prompt: tuple[int, ...], length: int) -> tuple[list[int], list[int]]:
    tokens, keys, sums = list(prompt), [list[int]() for _ in windows], list[int]()
    for position in range(len(prompt) + length - 1):
        total = 0
        for g, (window, own) in enumerate(zip(windows, keys, strict=True)):
            own.append(key(own[-1] if own else 0, tokens[position], position, g))
            seen = range(first_seen(window, position), position + 1)
            total += sum(term(own[p], value(own[p], p), p) for p in seen)
        sums.append(total % PRIME)
        if position >= len(prompt) - 1:
            tokens.append(sums[-1])
    return tokens[len(prompt) :], sums
