"""Parameters of which some are quantized: read as they are stored, quantized when they are read, or restored."""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from bestiary.core.errors import DataError
from bestiary.core.quant.bound import noisy
from bestiary.core.quant.layout import Shape
from bestiary.core.quant.method import Method, layout_of


class Whole(Protocol):
    """What gives whole tensors by name."""

    def tensor(self, name: str) -> Tensor: ...
    def forget(self, name: str) -> None: ...


def stored_name(parameter: str, tensor: str) -> str:
    """The name in a checkpoint of one of the tensors that a quantized parameter is stored as."""
    return f"{parameter}.{tensor}"


@dataclass(frozen=True)
class Plain:
    """Parameters that an engine is to read plain, though they are quantized where it has them from.

    Args:
        names: of parameters, quantized or not.
        source: a checkpoint or engine directory whose tensors they are; None: an engine's own where they are quantized as
            they are loaded, else what their stored tensors stand for, in fp32.
        noise: of some of them, the size of random errors in place of those of quantization, as
            :func:`~bestiary.core.quant.bound.noisy` says.
    """

    names: frozenset[str]
    source: Path | None = None
    noise: Mapping[str, float] = field(default_factory=dict)


class Overlaid:
    """Whole tensors, some of them others'.

    Args:
        names: of those that ``others`` gives.
    """

    def __init__(self, tensors: Whole, others: Whole, names: Collection[str]) -> None:
        self._tensors, self._others, self._names = tensors, others, frozenset(names)

    def tensor(self, name: str) -> Tensor:
        return self._of(name).tensor(name)

    def forget(self, name: str) -> None:
        self._of(name).forget(name)

    def _of(self, name: str) -> Whole:
        return self._others if name in self._names else self._tensors


class Noisy:
    """Whole tensors, some of them with random errors of a size."""

    def __init__(self, tensors: Whole, sizes: Mapping[str, float]) -> None:
        self._tensors, self._sizes = tensors, sizes

    def tensor(self, name: str) -> Tensor:
        found = self._tensors.tensor(name)
        return noisy(found, self._sizes[name]) if name in self._sizes else found

    def forget(self, name: str) -> None:
        self._tensors.forget(name)


class QuantizedTensors:
    """Gives the tensors that quantized parameters are stored as, and the parameters themselves, whichever are there.

    A parameter that is there plain is quantized when the first of its stored tensors is asked for; those of one parameter
    are held until each has been asked for. A quantized parameter itself is what its stored tensors stand for.

    Args:
        there: names that ``tensors`` has.
        methods: by parameter.
        shapes: of the model's parameters.
        device: where parameters are quantized.
    """

    def __init__(
        self,
        tensors: Whole,
        there: Container[str],
        methods: Mapping[str, Method],
        shapes: Mapping[str, Shape],
        device: torch.device,
    ) -> None:
        self._tensors, self._there, self._methods = tensors, there, methods
        self._shapes, self._device = shapes, device
        self._held: dict[str, Tensor] = {}

    def tensor(self, name: str) -> Tensor:
        if name in self._methods:
            return self._restored(name)
        if name in self._there:
            return self._tensors.tensor(name)
        if name not in self._held:
            parameter = name.rpartition(".")[0]
            made = self._quantized(parameter)
            self._held |= {stored_name(parameter, part): tensor for part, tensor in made.items()}
        return self._held.pop(name)

    def forget(self, name: str) -> None:
        if name in self._there:
            self._tensors.forget(name)

    def _quantized(self, parameter: str) -> dict[str, Tensor]:
        made = quantized(self._methods[parameter], self._tensors.tensor(parameter), self._device, parameter)
        self._tensors.forget(parameter)
        return made

    def _restored(self, parameter: str) -> Tensor:
        method, shape = self._methods[parameter], self._shapes[parameter]
        if parameter in self._there:
            stored = self._quantized(parameter)
        else:
            layout = layout_of(method, shape, parameter)
            stored = {part: self._tensors.tensor(stored_name(parameter, part)) for part in layout}
        return method.weight({part: tensor.to(self._device) for part, tensor in stored.items()}, shape, "float32")


def quantized(method: Method, weight: Tensor, device: torch.device, parameter: str) -> dict[str, Tensor]:
    """The stored tensors of a weight, without calibration.

    Raises:
        DataError: it has NaN or infinities.
    """
    wide = weight.to(device=device, dtype=torch.float32)
    check_finite(wide, parameter)
    return method.quantize(wide)


def check_finite(weight: Tensor, parameter: str) -> None:
    """Refuse NaN and infinities: no scale fits them (DataError)."""
    if not all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(weight)) if weight.numel() else False:
        raise DataError(
            "E-QUANT-NONFINITE", f"parameter {parameter}", "can't be quantized: it has values that are NaN or infinite",
            hint="check the source model, or leave the module unquantized",
        )  # fmt: skip
