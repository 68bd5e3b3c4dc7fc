"""The numbers of ``random_stream``, many at once on a device: bit for bit the same."""

from __future__ import annotations

from torch import Tensor


def as_int64(value: int) -> int:
    """The int64 with the bits of an unsigned 64-bit number; what a tensor of seeds holds."""
    return value - (1 << 64) if value >> 63 else value


_GOLDEN = as_int64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = as_int64(0xBF58476D1CE4E5B9), as_int64(0x94D049BB133111EB)


def uniforms(seeds: Tensor, counters: Tensor) -> Tensor:
    """Per row ``random_stream.uniform(seed, counter)``, strictly between 0 and 1.

    Args:
        seeds: [R] int64, the bits of seeds from 0 to 2**64 - 1.
        counters: [R] int64, from 0: how many tokens the answer has.

    Returns:
        [R] float64.
    """
    bits = _shifted(_mix(_mix(seeds + _GOLDEN) + (counters + 1) * _GOLDEN), 16)
    return (bits.double() + 0.5) * 2.0**-48


def _mix(value: Tensor) -> Tensor:
    """SplitMix64's output function; int64 products wrap as unsigned ones do."""
    value = (value ^ _shifted(value, 30)) * _FIRST
    value = (value ^ _shifted(value, 27)) * _SECOND
    return value ^ _shifted(value, 31)


def _shifted(value: Tensor, by: int) -> Tensor:
    """A logical shift to the right; int64's own repeats the sign."""
    return (value >> by) & ((1 << (64 - by)) - 1)
