"""How a quantized weight lies in a checkpoint: which tensors, and which of their elements belong to a slice of it. No torch.

N rows · K columns of a weight ``[…, N, K]``; what is in front of them (experts) every stored tensor has too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bestiary.core.errors import ConfigError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Stored:
    """One tensor of a quantized weight.

    Args:
        dtype: as torch names it.
        block: rows and columns of the weight that one element stands for; None: all of them.
    """

    dtype: str
    block: tuple[int | None, int | None] = (1, 1)

    def shape(self, weight: Shape) -> Shape:
        """Its shape, of a weight of this shape."""
        *lead, rows, columns = weight
        return (*lead, _blocks(rows, self.block[0]), _blocks(columns, self.block[1]))


@dataclass(frozen=True)
class Piece:
    """A slice of a stored tensor: each element ``repeat`` times along ``axis``, then ``start … stop``."""

    axis: int
    start: int
    stop: int
    repeat: int = 1


def sliced(stored: Stored, weight: Shape, axis: int, start: int, stop: int, subject: str) -> Piece | None:
    """The elements that ``start … stop`` of the weight's axis needs; None: all of them, the axis is one block.

    Raises:
        ConfigError: the slice cuts a block in two.
    """
    if axis < len(weight) - 2:
        return Piece(axis, start, stop)
    block = stored.block[axis - len(weight) + 2]
    if block is None:
        return None
    if start % block or (stop % block and stop != weight[axis]):
        raise ConfigError(
            "E-BUILD-SHARD", subject, f"can't be divided between {'rows' if axis == len(weight) - 2 else 'columns'} that are stored as one",
            found=f"{start} … {stop} of {weight[axis]}", expected=f"a multiple of {block}",
            hint="choose smaller groups, another number of ranks, or leave this module unquantized",
        )  # fmt: skip
    return Piece(axis, start // block, -(-stop // block))


def stackable(layout: Mapping[str, Stored], rows: int) -> bool:
    """Whether other rows may follow so many of a weight: no stored element would stand for both."""
    return all(one.block[0] is not None and not rows % one.block[0] for one in layout.values())


def _blocks(size: int, block: int | None) -> int:
    return 1 if block is None else -(-size // block)
