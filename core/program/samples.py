"""Arguments to run one call of a program on: a sample step's inputs, weights, and random numbers for what calls make."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from bestiary.core.ops.declare import OpDeclaration
from bestiary.core.program.bind import ROWS
from bestiary.core.program.program import Instruction, Program, TorchCall, Value, Weight, fill
from bestiary.core.program.shapes import Dim, Shape, Sizes


class Samples:
    """Makes the arguments of a program's calls.

    Args:
        inputs: gives a sample step's tensors at the sizes asked for.
        weights: gives the constants.
    """

    def __init__(
        self,
        program: Program,
        shapes: Mapping[Value, Shape],
        inputs: Callable[[Sizes], Mapping[str, Tensor]],
        weights: Callable[[Weight], Tensor],
        device: torch.device,
        generator: torch.Generator,
    ) -> None:
        self._program, self._shapes, self._inputs, self._weights = program, shapes, inputs, weights
        self._device, self._generator, self._producers = device, generator, program.producers()

    def values(self, instruction: Instruction, sizes: Sizes) -> dict[Value, Tensor]:
        """A tensor for each value that the instruction reads."""
        given = self._inputs(sizes)
        known: dict[Value, Tensor] = {value: given[name] for name, value in self._program.inputs.items()}

        def tensor(value: Value) -> Tensor:
            producer = self._producers.get(value)
            if value not in known and producer is not None and self._names_things(producer):
                assert isinstance(producer.target, OpDeclaration)
                outputs = producer.target.reference(*fill(producer.args, tensor))
                known.update(zip(producer.results, outputs, strict=True))
            if value not in known:
                known[value] = self._made(value, tensor, sizes)
            return known[value]

        for value in instruction.values():
            tensor(value)
        return known

    def results(self, instruction: Instruction, sizes: Sizes) -> tuple[Tensor, ...]:
        """Memory for the results, filled with what a kernel that forgets an element would leave."""
        return tuple(unwritten(self._shapes[result], sizes, self._device) for result in instruction.results)

    def _names_things(self, producer: Instruction) -> bool:
        """Whether an op's results hold integers, such as a token's experts: made up, they would fit nothing else."""
        several = isinstance(producer.target, OpDeclaration) and producer.target.results > 1
        return several and not all(self._shapes[result].dtype.is_floating_point for result in producer.results)

    def _made(self, value: Value, tensor: Callable[[Value], Tensor], sizes: Sizes) -> Tensor:
        if isinstance(value, Weight):
            return self._weights(value)
        shape, producer = self._shapes[value], self._producers[value]
        if shape.base is not None and isinstance(producer.target, TorchCall):
            return producer.target.function(*fill(producer.args, tensor), **dict(producer.target.keywords))
        if not shape.dtype.is_floating_point:
            return torch.zeros(shape.at(sizes), dtype=shape.dtype, device=self._device)
        made = torch.randn(shape.at(sizes), generator=self._generator, device=self._device)
        return made.to(shape.dtype)


def sampled(rows: Dim, limits: Sizes, longest: int) -> dict[int, Sizes]:
    """The steps at which a call is looked at, by its number of rows.

    Args:
        rows: see ``calls.rows_of``.
        limits: the largest step's sizes.
        longest: most tokens of a sequence.
    """
    limit = rows.at(limits) if rows.tokens or rows.rows else 1
    counts = [count for count in ROWS if count < limit] + [min(limit, ROWS[-1])]
    return {
        count: Sizes(count, count, count) if rows.rows or count <= 8 else _prompt(count, longest)
        for count in dict.fromkeys(counts)
    }


def _prompt(tokens: int, longest: int) -> Sizes:
    """One prompt of so many tokens, or as many equal ones as the longest sequence makes necessary."""
    sequences = next(n for n in range(1, tokens + 1) if tokens % n == 0 and tokens // n <= longest)
    return Sizes(tokens, sequences, 1)


def unwritten(shape: Shape, sizes: Sizes, device: torch.device) -> Tensor:
    """Memory for a value, without anything in it that could be taken for a result."""
    return spoiled(torch.empty(shape.at(sizes), dtype=shape.dtype, device=device))


def spoiled(tensor: Tensor) -> Tensor:
    """The tensor, filled with what no call gives: NaN, or −1 where it holds integers."""
    return tensor.fill_(float("nan") if tensor.is_floating_point() else -1)
