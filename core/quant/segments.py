"""A program in the pieces that run one after the other, and a plain interpreter for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bestiary.core.kernels import attention as kernels
from bestiary.core.ops import attention
from bestiary.core.program.passes.cut import layers_of
from bestiary.core.program.program import Input, Instruction, Program, Result, TorchCall, Value, Weight, fill

#: Called with each instruction and its arguments before it is run.
See = Callable[[Instruction, Sequence[Any]], None]


class Segment(NamedTuple):
    """Instructions that follow each other.

    Args:
        parameters: those it uses.
        dropped: by instruction, the values that nobody reads any more after it.
        read: values that some instruction of the whole program reads.
    """

    name: str
    instructions: tuple[Instruction, ...]
    parameters: tuple[str, ...]
    dropped: Mapping[Instruction, tuple[Value, ...]]
    read: frozenset[Value]


def segments(program: Program, module: nn.Module) -> list[Segment]:
    """What comes before the layers, each layer, what follows; one segment where the model has no stack of layers."""
    paths = layers_of(program, module)
    if not paths:
        return [_segment(program, "model", 0, len(program.instructions))]
    inside = [[number for number, i in enumerate(program.instructions) if _within(i, path)] for path in paths]
    starts = [numbers[0] for numbers in inside]
    end = inside[-1][-1] + 1
    made = [_segment(program, "embedding", 0, starts[0])]
    for path, start, stop in zip(paths, starts, [*starts[1:], end], strict=True):
        made.append(_segment(program, path, start, stop))
    made.append(_segment(program, "head", end, len(program.instructions)))
    return [segment for segment in made if segment.instructions]


def step_inputs(program: Program, sequences: Sequence[Sequence[int]], device: torch.device) -> dict[Value, Tensor]:
    """The inputs of a step in which each sequence is a whole prompt, in one block; caches are made when they are needed."""
    lengths = [len(sequence) for sequence in sequences]
    longest = max(lengths)
    positions = torch.cat([torch.arange(length) for length in lengths])
    each = torch.tensor(lengths)
    owner = torch.arange(len(lengths)).repeat_interleave(each)
    given = {
        "tokens": torch.tensor([token for sequence in sequences for token in sequence], dtype=torch.int64),
        "positions": positions,
        "lengths": each.repeat_interleave(each),
        "logit_rows": torch.arange(len(positions)),
        "query_starts": torch.cat((torch.zeros(1, dtype=torch.int64), each.cumsum(0))).int(),
        "kv_lengths": each.int(),
    }
    for group in range(len(program.groups)):
        given[f"slots.{group}"] = owner * longest + positions
        given[f"block_tables.{group}"] = torch.arange(len(lengths), dtype=torch.int32).unsqueeze(1)
    return {program.inputs[name]: tensor.to(device) for name, tensor in given.items() if name in program.inputs}


@torch.no_grad()
def run(
    segment: Segment,
    state: Mapping[Value, Tensor],
    parameter: Callable[[str], Tensor],
    program: Program,
    dtype: torch.dtype,
    see: See | None = None,
) -> dict[Value, Tensor]:
    """Run a segment on one step; what later ones read of it and of ``state``.

    A call whose results nobody reads, such as the one that makes the logits, is seen but not made.

    Args:
        parameter: gives a parameter by name.
        dtype: of the caches.
    """
    known = dict(state)

    def lookup(value: Value) -> Tensor:
        if isinstance(value, Weight):
            return parameter(value.parts[0].parameter)
        if value not in known and isinstance(value, Input):
            known[value] = _cache(program, value, state[program.inputs["kv_lengths"]], dtype)
        return known[value]

    for instruction in segment.instructions:
        args = fill(instruction.args, lookup)
        if see is not None:
            see(instruction, args)
        if not instruction.results or any(result in segment.read for result in instruction.results):
            known.update(zip(instruction.results, _call(instruction, args), strict=True))
        for value in segment.dropped[instruction]:
            known.pop(value, None)
    return known


def _cache(program: Program, value: Input, lengths: Tensor, dtype: torch.dtype) -> Tensor:
    """A block for each sequence, and the scrap block."""
    kind, _, path = value.name.partition(".")
    spec = program.caches[path]
    size = spec.k_size if kind == "k" else spec.v_size
    shape = (len(lengths) + 1, int(lengths.max()), spec.kv_heads, size)
    return torch.zeros(shape, dtype=dtype, device=lengths.device)


def _segment(program: Program, name: str, start: int, stop: int) -> Segment:
    instructions = tuple(program.instructions[start:stop])
    last = {value: number for number, i in enumerate(program.instructions) for value in i.values()}
    dropped = {
        instruction: tuple(
            value
            for value in (*instruction.values(), *instruction.results)
            if _is_made(value) and last.get(value, number) == number
        )
        for number, instruction in enumerate(instructions, start)
    }
    used = dict.fromkeys(v for i in instructions for v in i.values() if isinstance(v, Weight))
    parameters = tuple(part.parameter for weight in used for part in weight.parts)
    return Segment(name, instructions, parameters, dropped, frozenset(last))


def _is_made(value: Value) -> bool:
    """Whether a value is a result or a cache: the other inputs of a step are small, and stay."""
    return isinstance(value, Result) or (isinstance(value, Input) and value.name.startswith(("k.", "v.")))


def _within(instruction: Instruction, path: str) -> bool:
    return instruction.scope == path or instruction.scope.startswith(f"{path}.")


def _call(instruction: Instruction, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    target = instruction.target
    if isinstance(target, TorchCall):
        return (target.function(*args, **dict(target.keywords)),)
    if target is attention.paged_attention:  # the reference makes all scores of all heads at once
        q, v_cache = args[0], args[2]
        out = q.new_empty(*q.shape[:-1], v_cache.shape[-1])
        kernels.paged_attention(*args, out=out)
        return (out,)
    made = target.reference(*args)
    return made if isinstance(made, tuple) else () if made is None else (made,)
