"""What every side can do: run tokens, show the tensors on the way, and go on with others in their place."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Made(NamedTuple):
    """Who made a tensor: the op, its kernel (None for torch's own functions), and the module whose forward called it.

    ``call``: the op with its arguments' shapes and dtypes; ``arguments``: those that are no tensors, by parameter.
    """

    op: str
    kernel: str | None
    scope: str
    call: str = ""
    arguments: Mapping[str, Any] = {}


class Spoiled(NamedTuple):
    """An input that a call changed, though its op's declaration does not let it.

    Args:
        by: who did.
        parameter: of the op.
        cached: what a cache held of other tokens was changed, which the op may write.
        changed, total: how many of its numbers.
        decode: in a step of one token.
    """

    by: Made
    parameter: str
    cached: bool
    changed: int
    total: int
    decode: bool


@dataclass
class Seen:
    """A run.

    Attributes:
        tensors: by the zoo's names (see :mod:`~bestiary.core.program.places`), and ``logits``; ``[tokens, …]`` on the
            processor, floating ones in float32; in the order in which they were made. Names of one tensor share it.
        groups: the names of each tensor, in the same order, where the side knows that they are one.
        made, decoded: by whom, in chunks of several tokens and in decodes, where the side knows.
        spoiled: inputs that calls changed against their declaration, in the order of the calls, where that was looked at.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    groups: list[tuple[str, ...]] = field(default_factory=list)
    made: dict[str, Made] = field(default_factory=dict)
    decoded: dict[str, Made] = field(default_factory=dict)
    spoiled: list[Spoiled] = field(default_factory=list)


@dataclass(frozen=True)
class Noise:
    """A relative change of every number of a tensor by ``size``, up or down as a coin falls: what a rounding may do."""

    size: float
    seed: int = 0

    def on(self, tensor: Tensor, name: str) -> Tensor:
        """The tensor, changed; the coins hang on the name and the seed alone."""
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + self.seed)
        coins = torch.empty(tensor.shape).bernoulli_(0.5, generator=generator)
        return tensor * coins.mul_(2 * self.size).add_(1 - self.size)


@dataclass(frozen=True)
class Instead:
    """What takes the place of the tensors of a run as soon as they are made, and seen.

    Args:
        tensors: by name. Every tensor is then made of right ones, and what is wrong with it is its own fault.
        noise: put on these tensors, or on the run's own where there are none.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    noise: Noise | None = None

    def of(self, names: Sequence[str], made: Tensor, rows: slice = slice(None)) -> Tensor | None:
        """What takes the place of a tensor on the processor, of the same shape; None: it stays."""
        if not names or not made.is_floating_point():
            return None
        name = common_name(names, self.tensors)
        right = made if name is None else self.tensors[name][rows]
        if right.numel() != made.numel() or (name is None and self.noise is None):
            return None
        right = right.reshape(made.shape)
        return right if self.noise is None else self.noise.on(right, f"{name or names[0]}.{rows.start}")


def common_name(names: Sequence[str], known: Collection[str]) -> str | None:
    """By which of its names two sides speak of a tensor: the outermost module that returns it, else the first."""
    both = [name for name in names if name in known]
    returned = [name for name in both if not name.endswith(".input")]
    return min(returned, key=lambda name: name.count(".")) if returned else both[0] if both else None


class Side(Protocol):
    """One way to run a model.

    Attributes:
        label: for people: ``transformers 5.24, float32``.
    """

    label: str

    @property
    def vocab_size(self) -> int:
        """How many tokens have a logit."""

    def run(self, tokens: Sequence[int], chunks: Sequence[int] = (), instead: Instead | None = None) -> Seen:
        """All tensors of one sequence.

        Args:
            chunks: how many of the tokens run in each step, one after the other; a chunk of 1 after the first is a decode.
                Empty: all in one step. A side that knows no steps runs them as a whole.
            instead: what to go on with.
        """

    def logits(self, tokens: Sequence[int]) -> Tensor:
        """After each token, ``[tokens, vocabulary]`` float32 on the processor."""


def plain(tensor: Tensor) -> Tensor:
    """A copy of its own on the processor, in float32 if it is floating."""
    moved = tensor.detach().to("cpu", copy=True)
    return moved.float() if moved.is_floating_point() else moved
