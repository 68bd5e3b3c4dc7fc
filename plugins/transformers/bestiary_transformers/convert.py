"""The weight map that changes no name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from bestiary.converters import WeightMap

# Masks, frequencies and positions that old checkpoints carry and today's modules compute.
_COMPUTED = re.compile(
    r".*\.(attn|attention)\.(bias|masked_bias)|.*\.rotary_emb\.(inv_freq|cos_cached|sin_cached)|.*\.position_ids"
)
_INDEX = re.compile(r"(?<=\.)\d+(?=\.|$)")


class OwnNames(WeightMap):
    """Every parameter under transformers' own name, or without its first part: sources of headless models lack that."""

    def __init__(self) -> None:
        super().__init__({})

    def transfers(self, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Any]:
        modules = {_INDEX.sub("{}", name) for name in shapes}
        return WeightMap({name: (name, name.partition(".")[2]) for name in modules}).transfers(shapes)

    def drops(self, tensor: str) -> bool:
        return _COMPUTED.fullmatch(tensor) is not None


HF = OwnNames()
