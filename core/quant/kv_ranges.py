"""Fixed scales for a key-value cache of few bits, from the keys and values that a text gives. K key-value heads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bestiary.core.checkpoint.kv_scales import names_of
from bestiary.core.errors import DataError
from bestiary.core.ops.declare import OpDeclaration
from bestiary.core.ops.kv_blocks import LARGEST
from bestiary.core.program.program import Input, Instruction

#: int4's codes are −8 … 7 steps from zero where its scale is fixed.
_OF_FOUR_BITS = 7.0


class CacheRange(NamedTuple):
    """The largest magnitudes written to a cache: of keys (after their rotation) and of values, for each head ``[K]``."""

    k: Tensor
    v: Tensor


class CacheRanges:
    """Sees the calls of a layer for all sequences.

    Attributes:
        found: by the path of the cache.
    """

    def __init__(self) -> None:
        self.found: dict[str, CacheRange] = {}

    def __call__(self, instruction: Instruction, args: Sequence[Any]) -> None:
        """A call that is about to be made. An op that writes has k and k_cache, v and v_cache."""
        target = instruction.target
        if not (isinstance(target, OpDeclaration) and target.mutates):
            return
        given: Mapping[str, Any] = dict(zip(target.parameters, args, strict=True))
        cache = dict(zip(target.parameters, instruction.args, strict=True)).get("k_cache")
        if isinstance(cache, Input) and {"k", "v", "v_cache"} <= given.keys():
            path = cache.name.partition(".")[2]
            now = CacheRange(*(given[name].float().abs().amax((0, -1)) for name in ("k", "v")))
            before = self.found.get(path, now)
            self.found[path] = CacheRange(torch.maximum(before.k, now.k), torch.maximum(before.v, now.v))


def scales_of(ranges: Mapping[str, CacheRange], paths: Iterable[str], kind: str) -> dict[str, Tensor]:
    """The stored scales of the caches at these paths, fp32 ``[K]`` each: the largest number is the largest code.

    A head that was always zero has the scale 1.

    Args:
        kind: one of :data:`~bestiary.core.kv_format.KINDS`.

    Raises:
        DataError: nothing was observed of a cache, or a number that was not finite.
    """
    made: dict[str, Tensor] = {}
    for path in paths:
        for name, largest in zip(names_of(path), ranges.get(path, (None, None)), strict=True):
            if largest is None or not largest.isfinite().all():
                shown = "no keys and values" if largest is None else "numbers that are not finite"
                raise DataError(
                    "E-QUANT-CALIBRATION", f"cache {path}", f"has shown {shown}", hint="calibrate on another text"
                )
            made[name] = torch.where(largest > 0, largest / LARGEST.get(kind, _OF_FOUR_BITS), 1.0)
    return made
