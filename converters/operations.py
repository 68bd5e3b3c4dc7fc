"""What a weight map's row can do to tensors on their way in, each with its reverse on the way out.

An operation relates the parameters of one row (its *targets*, in the zoo's names) to tensors of the source. Shapes are
known before any data is read: ``source_shapes`` says what the targets' shapes demand of the source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Operation:
    """Copy a tensor as it is; base of the others.

    Args:
        source: name of the source's module, with ``{}`` for each index of the row's name.
    """

    source: str

    @property
    def rowwise(self) -> bool:
        """Whether it moves whole rows of matrices, so that it may act on each of the tensors that a quantized one is stored as."""
        return False

    @property
    def modules(self) -> tuple[str, ...]:
        """Modules below the row's own that the operation fills; empty: the row's own module."""
        return ()

    def names(self, indices: Sequence[int], suffix: str, shapes: Sequence[Shape]) -> list[str]:
        """The source tensors for targets of these shapes."""
        return [self.source.format(*indices) + suffix]

    def source_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        """The shapes those tensors must have."""
        return list(shapes)

    def forward(self, sources: Sequence[Tensor], shapes: Sequence[Shape], config: Any) -> list[Tensor]:
        """The targets, from the source's tensors."""
        return list(sources)

    def reverse(self, targets: Sequence[Tensor], config: Any) -> list[Tensor]:
        """The source's tensors, from the targets."""
        return list(targets)


@dataclass(frozen=True)
class Copy(Operation):
    """The target is the source's tensor."""

    @property
    def rowwise(self) -> bool:
        return True


@dataclass(frozen=True)
class Transpose(Operation):
    """Matrices stored as ``[in, out]``; vectors are left alone."""

    def source_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [shape[::-1] if len(shape) == 2 else shape for shape in shapes]

    def forward(self, sources: Sequence[Tensor], shapes: Sequence[Shape], config: Any) -> list[Tensor]:
        return [tensor.t() if tensor.dim() == 2 else tensor for tensor in sources]

    def reverse(self, targets: Sequence[Tensor], config: Any) -> list[Tensor]:
        return [tensor.t() if tensor.dim() == 2 else tensor for tensor in targets]


@dataclass(frozen=True)
class PermuteRope(Operation):
    """Rows of a query or key projection whose rotary pairs are neighbours (2i, 2i+1) in the source.

    The zoo, like Hugging Face, pairs row i of a head with row i + head/2.
    """

    heads: str

    @property
    def rowwise(self) -> bool:
        return True

    def forward(self, sources: Sequence[Tensor], shapes: Sequence[Shape], config: Any) -> list[Tensor]:
        heads = getattr(config, self.heads)
        return [t.reshape(heads, -1, 2, *t.shape[1:]).transpose(1, 2).reshape(t.shape) for t in sources]

    def reverse(self, targets: Sequence[Tensor], config: Any) -> list[Tensor]:
        heads = getattr(config, self.heads)
        return [t.reshape(heads, 2, -1, *t.shape[1:]).transpose(1, 2).reshape(t.shape) for t in targets]


@dataclass(frozen=True)
class Split(Operation):
    """One source tensor whose rows are those of several modules, one after the other."""

    into: tuple[str, ...]

    @property
    def rowwise(self) -> bool:
        return True

    @property
    def modules(self) -> tuple[str, ...]:
        return self.into

    def source_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [(sum(shape[0] for shape in shapes), *shapes[0][1:])]

    def forward(self, sources: Sequence[Tensor], shapes: Sequence[Shape], config: Any) -> list[Tensor]:
        import torch

        return list(torch.split(sources[0], [shape[0] for shape in shapes]))

    def reverse(self, targets: Sequence[Tensor], config: Any) -> list[Tensor]:
        import torch

        return [torch.cat(list(targets))]


@dataclass(frozen=True)
class StackExperts(Operation):
    """A target ``[E, …]`` from E source tensors; the last ``{}`` of ``source`` is the expert."""

    @property
    def rowwise(self) -> bool:
        return True

    def names(self, indices: Sequence[int], suffix: str, shapes: Sequence[Shape]) -> list[str]:
        return [self.source.format(*indices, expert) + suffix for expert in range(shapes[0][0])]

    def source_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [shapes[0][1:]] * shapes[0][0]

    def forward(self, sources: Sequence[Tensor], shapes: Sequence[Shape], config: Any) -> list[Tensor]:
        import torch

        return [torch.stack(list(sources))]

    def reverse(self, targets: Sequence[Tensor], config: Any) -> list[Tensor]:
        return list(targets[0].unbind())


def transpose(source: str) -> Operation:
    """The source stores the matrix transposed, as ``[in, out]``."""
    return Transpose(source)


def permute_rope(source: str, *, heads: str) -> Operation:
    """The source's rotary pairs are neighbours; ``heads`` is the config's field with the number of heads in the rows."""
    return PermuteRope(source, heads)


def split(source: str, *, into: tuple[str, ...]) -> Operation:
    """The source stacks the rows of the modules ``into``, named below the row's own: ``split("…qkv_proj", into=("q", "k", "v"))``."""
    return Split(source, into)


def stack_experts(source: str) -> Operation:
    """The source has a tensor for each expert, the zoo one for all; the last ``{}`` is the expert's index."""
    return StackExperts(source)


Row = str | Operation | tuple[str | Operation, ...]
Rows = Mapping[str, Row]


def alternatives(row: Row) -> tuple[Operation, ...]:
    """A row's value as operations; the first is what export writes."""
    parts = row if isinstance(row, tuple) else (row,)
    return tuple(part if isinstance(part, Operation) else Copy(part) for part in parts)
