"""The frequencies of the rotary embedding's kinds: for each, which context extension it stands for and its source."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from bestiary.core.config import Rope


@lru_cache(maxsize=256)
def rope_frequencies(rope: Rope, size: int, device: torch.device) -> Tensor:
    """Inverse wavelengths ``[size / 2]`` in fp32, in radians per position, of every kind but ``dynamic``."""
    exponents = torch.arange(0, size, 2, dtype=torch.int64).float() / size
    plain = 1.0 / rope.theta**exponents
    if rope.kind == "linear":
        frequencies = plain / rope.factor
    elif rope.kind == "llama3":
        frequencies = _llama3(plain, rope)
    elif rope.kind == "yarn":
        frequencies = _yarn(plain, rope, size)
    else:
        frequencies = plain
    return frequencies.to(device)


def dynamic_frequencies(rope: Rope, size: int, lengths: Tensor) -> Tensor:
    """NTK-aware scaling that grows with the context (bloc97, emozilla 2023): ``[T, size / 2]`` fp32.

    ``base = θ · (factor · length / original − (factor − 1)) ^ (size / (size − 2))`` once a token's context is longer
    than the original one.
    """
    original = float(rope.original_max_position or 1)
    grown = lengths.clamp(min=int(original)).double()
    bases = rope.theta * (rope.factor * grown / original - (rope.factor - 1)) ** (size / (size - 2))
    exponents = torch.arange(0, size, 2, device=lengths.device).double() / size
    return (1.0 / bases.unsqueeze(-1) ** exponents).float()


def rope_scale(rope: Rope) -> float:
    """What cosines and sines are multiplied by: YaRN's attention temperature (Peng et al. 2023), else 1."""
    if rope.kind != "yarn":
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return _temperature(rope.factor, rope.mscale) / _temperature(rope.factor, rope.mscale_all_dim)
    return _temperature(rope.factor, 1.0)


def _temperature(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _llama3(plain: Tensor, rope: Rope) -> Tensor:
    """Long wavelengths are stretched by the factor, short ones kept, those between blended (Llama 3.1)."""
    assert rope.low_freq_factor and rope.high_freq_factor and rope.original_max_position
    turns = rope.original_max_position * plain / (2 * math.pi)
    blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blend = blend.clamp(0, 1)
    return (1 - blend) * plain / rope.factor + blend * plain


def _yarn(plain: Tensor, rope: Rope, size: int) -> Tensor:
    """Interpolate the slow dimensions, keep the fast ones, with a ramp between (Peng et al. 2023)."""
    original = rope.original_max_position
    assert original

    def dimension(turns: float) -> float:
        return size * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    ramp = (torch.arange(size // 2).float() - low) / max(high - low, 0.001)
    keep = 1 - ramp.clamp(0, 1)
    return plain / rope.factor * (1 - keep) + plain * keep
