"""What every side can do: run tokens, and show the tensors on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from torch import Tensor


class Made(NamedTuple):
    """Who made a tensor: the op, its kernel (None for torch's own functions), and the module whose forward called it."""

    op: str
    kernel: str | None
    scope: str


@dataclass
class Seen:
    """A run.

    Attributes:
        tensors: by the zoo's names (see :mod:`~bestiary.core.program.places`), and ``logits``; ``[tokens, …]`` on the
            processor, floating ones in float32; in the order in which they were made.
        made: by whom, where the side knows.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    made: dict[str, Made] = field(default_factory=dict)


class Side(Protocol):
    """One way to run a model.

    Attributes:
        label: for people: ``transformers 5.24 float32``.
    """

    label: str

    def run(self, tokens: Sequence[int], chunks: Sequence[int] = ()) -> Seen:
        """All tensors of one sequence.

        Args:
            chunks: how many of the tokens run in each step, one after the other; a chunk of 1 after the first is a decode.
                Empty: all in one step. A side that knows no steps runs them as a whole.
        """

    def logits(self, tokens: Sequence[int]) -> Tensor:
        """After each token, ``[tokens, vocabulary]`` float32 on the processor."""


def plain(tensor: Tensor) -> Tensor:
    """A copy of its own on the processor, in float32 if it is floating."""
    moved = tensor.detach().to("cpu", copy=True)
    return moved.float() if moved.is_floating_point() else moved
