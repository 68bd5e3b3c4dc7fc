"""The weight map that changes no name: what transformers saves is what a checkpoint holds, read as transformers reads it.

Some of its modules hold their weights in another form than files do (experts in one tensor, other names); the library's
own table of such conversions says how, and is asked a parameter at a time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    PrefixChange,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
    revert_weight_conversion,
)

from bestiary.converters import Operation, WeightMap

from .config import TransformersConfig
from .module import make_module

Shape = tuple[int, ...]

# Masks, frequencies and positions that old checkpoints carry and today's modules compute.
_COMPUTED = re.compile(
    r".*\.(attn|attention)\.(bias|masked_bias)|.*\.rotary_emb\.(inv_freq|cos_cached|sin_cached)|.*\.position_ids"
)
_INDEX = re.compile(r"(?<=\.)\d+(?=\.|$)")


class OwnNames(WeightMap):
    """Rows for transformers' own names; left-over tensors are dropped where modules compute them."""

    def drops(self, tensor: str) -> bool:
        return _COMPUTED.fullmatch(tensor) is not None


@dataclass(frozen=True, eq=False)
class Converted(Operation):
    """The parameter ``source`` of ``module``, which lies in files in another form."""

    module: Any

    def _saved(self, tensor: Tensor) -> dict[str, Tensor]:
        saved: dict[str, Tensor] = revert_weight_conversion(self.module, {self.source: tensor})
        return saved

    def names(self, indices: Sequence[int], suffix: str, shapes: Sequence[Shape]) -> list[str]:
        return list(self._saved(torch.empty(shapes[0], device="meta")))

    def source_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [tuple(tensor.shape) for tensor in self._saved(torch.empty(shapes[0], device="meta")).values()]

    def forward(self, sources: Sequence[Tensor], shapes: Sequence[Shape], config: Any) -> list[Tensor]:
        transforms = self.module._weight_conversions
        renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
        converters = [one for one in transforms if isinstance(one, WeightConverter)]
        of_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
        mine = None
        for name, tensor in zip(self.names((), "", shapes), sources, strict=True):
            target, pattern = rename_source_key(name, renamings, converters)
            mine = mine or deepcopy(of_pattern[pattern])
            mine.add_tensor(target, name, pattern, tensor)
        assert mine is not None
        made = mine.convert(self.source, model=self.module, config=self.module.config)[self.source]
        return [made[0] if isinstance(made, list) else made]

    def reverse(self, targets: Sequence[Tensor], config: Any) -> list[Tensor]:
        return [tensor.contiguous() for tensor in self._saved(targets[0]).values()]


def hf(config: TransformersConfig) -> WeightMap:
    """The map of safetensors files of a config's model."""
    module = make_module(config)
    # As for a module that was made and not loaded, and no prefix is put before names.
    found = get_model_conversion_mapping(module, add_legacy=False)
    module._weight_conversions = [one for one in found if not isinstance(one, PrefixChange)]
    rows: dict[str, Any] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        rows |= _row(name, parameter, module)
    return OwnNames(rows)


def _row(name: str, parameter: Tensor, module: Any) -> Mapping[str, Any]:
    saved = revert_weight_conversion(module, {name: parameter})
    source, first = next(iter(saved.items()))
    if len(saved) == 1 and first is parameter:
        row, source = (_INDEX.sub("{}", name), _INDEX.sub("{}", name)) if source == name else (name, source)
        # A base model's files have no head and lack the name's first part.
        return {row: (source, source.partition(".")[2])}
    return {name: Converted(name, module)}
