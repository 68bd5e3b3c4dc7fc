"""Quantizing a model layer by layer, each with what it reads once those before it are quantized. N rows · K columns · E experts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bestiary.core.checkpoint.checkpoint import Checkpoint
from bestiary.core.plugins import PluginHost
from bestiary.core.progress import Progress
from bestiary.core.quant.choose import Chosen
from bestiary.core.quant.inputs import Inputs, Wants
from bestiary.core.quant.kv_ranges import CacheRange
from bestiary.core.quant.layerwise import Layer, layerwise
from bestiary.core.quant.method import Method
from bestiary.core.quant.sharing import Shared
from bestiary.core.quant.tensors import check_finite


@dataclass
class QuantizedLayer:
    """What became of a layer's parameters.

    Attributes:
        stored: of each quantized parameter, its stored tensors.
        changed: plain parameters that took up scales, fp32.
        caches: largest magnitudes that the layer as it is then writes to its caches, by path.
    """

    stored: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    changed: dict[str, Tensor] = field(default_factory=dict)
    caches: Mapping[str, CacheRange] = field(default_factory=dict)


def quantize_layers(
    checkpoint: Checkpoint,
    host: PluginHost,
    methods: Mapping[str, Chosen],
    sequences: Sequence[Sequence[int]],
    *,
    progress: Progress | None = None,
) -> Iterator[QuantizedLayer]:
    """The layers in the order of execution. A parameter that several layers read is quantized with the first of them.

    Args:
        methods: by parameter.
        sequences: token ids of the text that stands for the model's use.
    """
    wants = Wants(hessian=lambda name: name in methods and "hessian" in methods[name].method.wants)
    done: set[str] = set()
    for layer in layerwise(checkpoint, host, sequences, wants=wants, progress=progress):
        work = _Work(
            layer, {name: methods[name].method for name in layer.parameters if name in methods and name not in done}
        )
        made = work.run()
        done |= made.stored.keys()
        yield made


class _Work:
    """One layer: weights as they are by now, fp32."""

    def __init__(self, layer: Layer, methods: Mapping[str, Method]) -> None:
        self._layer, self._methods = layer, methods
        self._weights: dict[str, Tensor] = {}
        self._scales: dict[str, Tensor] = {}

    def run(self) -> QuantizedLayer:
        for group in self._layer.shared:
            self._scale(group)
        made = QuantizedLayer()
        for name, method in self._methods.items():
            weight = self._weights.pop(name) if name in self._weights else self._plain(name)
            check_finite(weight, name)
            seen = [scaled(one, self._scales.get(name)) for one in self._layer.inputs.get(name, ())]
            made.stored[name] = method.quantize(weight, seen)
            restored = method.weight(made.stored[name], tuple(weight.shape), "float32")
            self._layer.put({name: restored})
        made.changed = {name: weight for name, weight in self._weights.items() if name not in self._methods}
        self._layer.put(made.changed)
        self._layer.settle()
        made.caches = self._layer.caches
        return made

    def _plain(self, name: str) -> Tensor:
        return self._layer.weight(name).float()

    def _weight(self, name: str) -> Tensor:
        if name not in self._weights:
            self._weights[name] = self._plain(name).clone()
        return self._weights[name]

    def _scale(self, group: Shared) -> None:
        """Move what the readers' method wants from what they read into their columns."""
        readers = [name for name in group.readers if name in self._methods]
        whole = [
            name for name in group.readers if len(self._layer.inputs[name]) == 1
        ]  # experts see some of the rows each
        if group.source is None or not readers or not whole:
            return
        factors = self._factors(readers, self._layer.inputs[whole[0]][0])
        if factors is None:
            return
        for name in group.readers:
            self._weight(name).mul_(factors)
            self._scales[name] = factors
        axis, source = group.source.axis, self._weight(group.source.weight)
        source.div_(factors if axis == -1 else factors.unsqueeze(-1))
        if group.source.bias is not None:
            self._weight(group.source.bias).div_(factors)

    def _factors(self, readers: Sequence[str], inputs: Inputs) -> Tensor | None:
        """What the first method that wants scales says of the readers that have it; the others' columns just follow."""
        for method in dict.fromkeys(self._methods[name] for name in readers):
            alike = [self._weight(name).flatten(0, -2) for name in readers if self._methods[name] == method]
            factors = method.scales(alike, inputs)
            if factors is not None:
                return factors
        return None


def scaled(inputs: Inputs, factors: Tensor | None) -> Inputs:
    """What is seen of the same rows, divided by ``factors`` ``[K]``."""
    if factors is None:
        return inputs
    hessian = None if inputs.hessian is None else inputs.hessian / torch.outer(factors, factors)
    return inputs._replace(
        mean=inputs.mean / factors, largest=inputs.largest / factors, sample=inputs.sample / factors, hessian=hessian
    )
