"""The program's constants: slices of a checkpoint's tensors, or random numbers in their shapes."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Container, Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from bestiary.core.program.program import Part, Weight
from bestiary.core.quant.method import Method
from bestiary.core.quant.tensors import Noisy, QuantizedTensors

if TYPE_CHECKING:
    from bestiary.core.engine.network import Network

#: Gives a part of a parameter, on the engine's device, in the engine's dtype.
PartSource = Callable[[Part], Tensor]


class Constants:
    """Makes each weight of a program once. A weight of one part that needs no change shares the file's pages.

    Args:
        forget: called with each tensor that was read and is needed no more.
    """

    def __init__(self, source: PartSource, forget: Callable[[str], None] = lambda parameter: None) -> None:
        self.source, self._forget = source, forget
        self._made: dict[tuple[Part, ...], Tensor] = {}
        self._released: set[Weight] = set()

    def __call__(self, weight: Weight) -> Tensor:
        if weight.parts not in self._made:
            parts = [self.source(part) for part in weight.parts]
            self._made[weight.parts] = parts[0] if len(parts) == 1 else torch.cat(parts)
            if len(parts) > 1:
                self._forget_parts(weight)
        return self._made[weight.parts]

    def make(self, weights: Iterable[Weight]) -> None:
        """Make all of these now, so that what memory is left is known."""
        for weight in weights:
            self(weight)

    def again(self, weight: Weight) -> Tensor:
        """The weight for one who reads it besides the engine: as it is held, or else made once more and not held here."""
        held = self._made.get(weight.parts)
        return Constants(self.source)(weight) if held is None else held

    def release(self, weight: Weight) -> None:
        """Let go of one that is not read any more."""
        self._made.pop(weight.parts, None)
        self._released.add(weight)
        self._forget_parts(weight)

    def kept(self, weights: Iterable[Weight]) -> dict[Weight, Tensor]:
        """Those of the weights that were not released."""
        return {weight: self(weight) for weight in weights if weight not in self._released}

    def _forget_parts(self, weight: Weight) -> None:
        for part in weight.parts:
            self._forget(part.parameter)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._made.values())


class Tensors(Protocol):
    """Where parameters come from, each whole."""

    def tensor(self, name: str) -> Tensor:
        """One of them, in the dtype that it is stored in; it may share memory with others and must not be written to."""

    def forget(self, name: str) -> None:
        """Its memory, if any, is needed no more."""


def constants_of(
    tensors: Tensors,
    there: Container[str],
    network: Network,
    methods: Mapping[str, Method],
    noise: Mapping[str, float] | None = None,
) -> Constants:
    """The constants of a network, from tensors of which some may be quantized, there or on their way.

    Args:
        noise: sizes of random errors, by parameter.
    """
    target = network.target
    if methods:
        shapes = {name: tuple(p.shape) for name, p in network.module.named_parameters()}
        tensors = QuantizedTensors(tensors, there, methods, shapes, target.device)
    if noise:
        tensors = Noisy(tensors, noise)
    return Constants(parts_of(tensors, target.dtype, target.device), tensors.forget)


def parts_of(tensors: Tensors, dtype: torch.dtype, device: torch.device) -> PartSource:
    """Parts of parameters; a rank touches only the pages of its own slice, and what was copied takes no memory in the file."""

    def source(part: Part) -> Tensor:
        whole = tensors.tensor(part.parameter)
        piece = whole
        if part.axis is not None:
            if part.repeat > 1:
                piece = piece.repeat_interleave(part.repeat, part.axis)
            piece = piece.narrow(part.axis, part.start, part.stop - part.start)
        made = piece.to(device=device, dtype=dtype if part.dtype is None else None).contiguous()
        if made.untyped_storage().data_ptr() != whole.untyped_storage().data_ptr():
            tensors.forget(part.parameter)
        return made

    return source


class RandomTensors:
    """Made-up parameters: normal with variance 1 / fan-in, norms and scalars 1, biases 0; the same for a seed however they are cut."""

    def __init__(
        self, seed: int, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, device: torch.device
    ) -> None:
        self._seed, self._shapes, self._dtype, self._device = seed, shapes, dtype, device

    def tensor(self, name: str) -> Tensor:
        shape = self._shapes[name]
        if len(shape) <= 1:
            return torch.full(shape, float(not name.endswith(".bias")), dtype=self._dtype, device=self._device)
        generator = torch.Generator(self._device).manual_seed(zlib.crc32(f"{self._seed} {name}".encode()))
        made = torch.empty(shape, dtype=self._dtype, device=self._device)
        return made.normal_(0, shape[-1] ** -0.5, generator=generator)

    def forget(self, name: str) -> None:
        """Nothing is kept."""
