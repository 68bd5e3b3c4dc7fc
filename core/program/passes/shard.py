"""Tensor parallelism: cut each weight as its layer declares, and insert the collectives."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from bestiary.core.errors import ConfigError
from bestiary.core.ops import collective, linear
from bestiary.core.ops.collective import Ranks
from bestiary.core.program.program import Instruction, Program, Result, Weight
from bestiary.layers.cache import CacheSpec
from bestiary.layers.shard import Column, Experts, Row, Vocabulary


def shard(program: Program, model: nn.Module, ranks: Ranks) -> None:
    """Make the program one rank's share; shapes follow from the weights' (no size is named in a forward).

    Raises:
        ConfigError: a layer can't be cut into so many parts.
    """
    if ranks.size == 1:
        return
    rewritten: list[Instruction] = []
    for instruction in list(program.instructions):
        declared = _declaration(instruction, model)
        if isinstance(declared, Column):
            _column(instruction, declared.units, ranks)
            rewritten.append(instruction)
        elif isinstance(declared, Row):
            _row(instruction, declared.units, ranks)
            rewritten += [instruction, _after(program, instruction, ranks, collective.all_reduce)]
        elif isinstance(declared, Experts):
            _experts(instruction, declared.units, ranks)
            rewritten += [instruction, _after(program, instruction, ranks, collective.all_reduce)]
        elif isinstance(declared, Vocabulary):
            gather = _vocabulary(instruction, ranks)
            rewritten += [instruction, _after(program, instruction, ranks, gather)]
        else:
            rewritten.append(instruction)
    program.instructions = rewritten
    program.caches = {path: _cache(path, spec, ranks) for path, spec in program.caches.items()}


def bounds(units: int, size: int, ranks: Ranks, subject: str) -> tuple[int, int]:
    """Which of ``size`` features, in ``units`` equal units, a rank holds: whole units, shared if there are too few."""
    if units % ranks.size and ranks.size % units:
        raise ConfigError(
            "E-BUILD-SHARD",
            subject,
            f"can't be divided among {ranks.size} tensor-parallel ranks",
            found=f"{units} units of {size // units} features",
            expected=f"a multiple or a divisor of {ranks.size} units",
        )
    unit = size // units
    if units < ranks.size:
        first = ranks.rank * units // ranks.size
        return first * unit, (first + 1) * unit
    each = units // ranks.size
    return ranks.rank * each * unit, (ranks.rank + 1) * each * unit


def _declaration(instruction: Instruction, model: nn.Module) -> object:
    for value in instruction.values():
        if isinstance(value, Weight) and value.shape:  # every rank has a scalar whole, whoever owns it
            owner, _, _ = value.parts[0].parameter.rpartition(".")
            return getattr(model.get_submodule(owner), "shard", None)
    return None


def _slice(weight: Weight, axis: int, start: int, stop: int) -> Weight:
    (part,) = weight.parts
    shape = tuple(stop - start if a == axis else size for a, size in enumerate(part.shape))
    return Weight(weight.name, (replace(part, shape=shape, axis=axis, start=start, stop=stop),))


def _column(instruction: Instruction, units: int, ranks: Ranks) -> None:
    x, weight, bias = instruction.args
    start, stop = bounds(units, weight.shape[0], ranks, weight.name)
    instruction.args = (x, _slice(weight, 0, start, stop), bias and _slice(bias, 0, start, stop))


def _row(instruction: Instruction, units: int, ranks: Ranks) -> None:
    x, weight, bias = instruction.args
    start, stop = _whole_units(units, weight, 1, ranks)
    # The partial results are summed, so only one rank adds the bias.
    instruction.args = (x, _slice(weight, 1, start, stop), bias if ranks.rank == 0 else None)


def _experts(instruction: Instruction, units: int, ranks: Ranks) -> None:
    x, weights, experts, gate, up, down, *rest = instruction.args
    start, stop = _whole_units(units, down, 2, ranks)
    sliced = (_slice(gate, 1, start, stop), _slice(up, 1, start, stop), _slice(down, 2, start, stop))
    instruction.args = (x, weights, experts, *sliced, *rest)


def _whole_units(units: int, weight: Weight, axis: int, ranks: Ranks) -> tuple[int, int]:
    """A rank's part of an axis over which the results are summed: no two ranks may hold the same."""
    if units % ranks.size:
        raise ConfigError(
            "E-BUILD-SHARD",
            weight.name,
            f"can't be divided among {ranks.size} tensor-parallel ranks",
            found=f"{units} units",
            expected=f"a multiple of {ranks.size}",
        )
    return bounds(units, weight.shape[axis], ranks, weight.name)


def _vocabulary(instruction: Instruction, ranks: Ranks) -> object:
    x, weight = instruction.args[:2]
    rows = weight.shape[0]
    if rows % ranks.size:
        raise ConfigError(
            "E-BUILD-SHARD",
            weight.name,
            f"the vocabulary can't be divided among {ranks.size} tensor-parallel ranks",
            found=f"{rows} rows",
            expected=f"a multiple of {ranks.size}",
        )
    start, stop = bounds(rows, rows, ranks, weight.name)
    if instruction.target is linear.embedding:
        instruction.target = linear.embedding_shard
        instruction.args = (x, _slice(weight, 0, start, stop), start)
        return collective.all_reduce
    instruction.args = (x, _slice(weight, 0, start, stop), *instruction.args[2:])
    return collective.all_gather


def _after(program: Program, instruction: Instruction, ranks: Ranks, op: object) -> Instruction:
    (partial,) = instruction.results
    total = Result(f"{partial.name}.{'sum' if op is collective.all_reduce else 'all'}")
    program.replace(partial, total)
    assert op is collective.all_reduce or op is collective.all_gather
    return Instruction(op, (partial, ranks), (total,), instruction.scope)


def _cache(path: str, spec: CacheSpec, ranks: Ranks) -> CacheSpec:
    start, stop = bounds(spec.kv_heads, spec.kv_heads, ranks, path)
    return replace(spec, kv_heads=stop - start)
