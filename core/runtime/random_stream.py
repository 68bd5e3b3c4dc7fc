"""Random numbers by counter: a request's n-th number depends on its seed and n alone, never on the batch around it.

SplitMix64 (Steele, Lea, Flood 2014): a bijection of 64 bits that passes BigCrush on consecutive counters.
"""

from __future__ import annotations

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def mix(value: int) -> int:
    """SplitMix64's output function on 64 bits."""
    value &= _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def uniform(seed: int, position: int) -> float:
    """The number of output ``position`` (from 0), strictly between 0 and 1, in steps of 2**-48.

    Mixing the seed first keeps neighbouring seeds from being shifted copies of one stream. 48 bits leave float64 room
    to scale the number by a total close to 1 without reaching it.
    """
    bits = mix(mix(seed + _GOLDEN) + (position + 1) * _GOLDEN) >> 16
    return (bits + 0.5) * 2.0**-48
