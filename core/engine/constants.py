"""The program's constants: slices of a checkpoint's tensors, or random numbers in their shapes."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from bestiary.core.checkpoint.weights import Weights
from bestiary.core.program.program import Part, Weight

#: Gives a part of a parameter, on the engine's device, in the engine's dtype.
PartSource = Callable[[Part], Tensor]


class Constants:
    """Makes each weight of a program once. A weight of one part that needs no change shares the file's pages.

    Args:
        forget: called with each parameter that was read and is needed no more.
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


def from_files(weights: Weights, dtype: torch.dtype, device: torch.device) -> PartSource:
    """Read parts from weight files; a rank touches only the pages of its own slice, and what was copied takes no memory there."""

    def source(part: Part) -> Tensor:
        whole = weights.tensor(part.parameter)
        piece = whole if part.axis is None else whole.narrow(part.axis, part.start, part.stop - part.start)
        made = piece.to(device=device, dtype=dtype).contiguous()
        if made.untyped_storage().data_ptr() != whole.untyped_storage().data_ptr():
            weights.forget(part.parameter)
        return made

    return source


def at_random(seed: int, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, device: torch.device) -> PartSource:
    """Made-up parameters: normal with variance 1 / fan-in, norms 1, biases 0; the same for a seed however it is cut."""

    def source(part: Part) -> Tensor:
        shape = shapes[part.parameter]
        if len(shape) == 1:
            ones = not part.parameter.endswith(".bias")
            whole = torch.full(shape, float(ones), dtype=dtype, device=device)
        else:
            generator = torch.Generator(device).manual_seed(zlib.crc32(f"{seed} {part.parameter}".encode()))
            whole = torch.empty(shape, dtype=dtype, device=device).normal_(0, shape[-1] ** -0.5, generator=generator)
        piece = whole if part.axis is None else whole.narrow(part.axis, part.start, part.stop - part.start)
        return piece.contiguous()

    return source
