"""Shapes of every value as the step's sizes vary. T tokens · N sequences · R rows with logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bestiary.core.errors import PluginError
from bestiary.core.ops.declare import OpDeclaration
from bestiary.core.ops.kv_blocks import CacheDtype, block_shape, element
from bestiary.core.program.program import Instruction, Program, Value, Weight, fill


class Sizes(NamedTuple):
    """What varies from step to step. ``blocks``: so many columns of the block tables are shown; 0 for all."""

    tokens: int
    sequences: int
    rows: int
    blocks: int = 0


class Dim(NamedTuple):
    """``constant + tokens · T + sequences · N + rows · R``."""

    constant: int
    tokens: int = 0
    sequences: int = 0
    rows: int = 0

    def at(self, sizes: Sizes) -> int:
        return self.constant + self.tokens * sizes.tokens + self.sequences * sizes.sequences + self.rows * sizes.rows

    def __str__(self) -> str:
        names = (("T", self.tokens), ("N", self.sequences), ("R", self.rows))
        terms = [name if factor == 1 else f"{factor}{name}" for name, factor in names if factor]
        return "+".join(terms + ([str(self.constant)] if self.constant or not terms else []))


@dataclass(frozen=True)
class Shape:
    """Of a value: its dims, its dtype, and the value whose memory it is a view of (None: its own)."""

    dims: tuple[Dim, ...]
    dtype: torch.dtype
    base: Value | None = None

    def at(self, sizes: Sizes) -> tuple[int, ...]:
        return tuple(dim.at(sizes) for dim in self.dims)

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}[{', '.join(map(str, self.dims))}]"


@dataclass(frozen=True)
class Geometry:
    """What the build fixes: the dtypes, and the shape of the paged cache (``table`` = blocks a sequence can have)."""

    dtype: torch.dtype
    kv_dtype: CacheDtype
    block_size: int
    table: int


# Probe points whose sizes differ in one axis each: three differences give the three factors of a dim.
_ORIGIN = Sizes(53, 31, 17)
_PROBES = (Sizes(64, 31, 17), Sizes(53, 38, 17), Sizes(53, 31, 30))


def infer(program: Program, geometry: Geometry) -> dict[Value, Shape]:
    """The shape of every value, found by running the ops' fakes on meta tensors at four sizes.

    Raises:
        PluginError: an op's shapes don't grow linearly with the step's sizes, or it fails on meta tensors.
    """
    runs = [_run(program, geometry, sizes) for sizes in (_ORIGIN, *_PROBES)]
    shapes: dict[Value, Shape] = {}
    owners: dict[int, Value] = {}
    for value, tensor in runs[0].items():
        storage = tensor.untyped_storage()._cdata
        base = owners.setdefault(storage, value)
        dims = tuple(_dim(value, axis, runs) for axis in range(tensor.ndim))
        shapes[value] = Shape(dims, tensor.dtype, None if base is value else base)
    return shapes


def accepts(op: OpDeclaration[..., Any], args: tuple[Any, ...], shapes: Mapping[Value, Shape]) -> bool:
    """Whether an op takes arguments of these shapes: its fake does."""
    given = fill(args, lambda value: torch.empty(shapes[value].at(_ORIGIN), dtype=shapes[value].dtype, device="meta"))
    try:
        op.fake(*given)
    except Exception:
        return False
    return True


def input_tensors(program: Program, geometry: Geometry, sizes: Sizes) -> Mapping[str, Tensor]:
    """Meta tensors of the step's inputs."""
    tokens, sequences, rows, _ = sizes
    shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "tokens": ((tokens,), torch.int64),
        "positions": ((tokens,), torch.int64),
        "lengths": ((tokens,), torch.int64),
        "logit_rows": ((rows,), torch.int64),
        "query_starts": ((sequences + 1,), torch.int32),
        "kv_lengths": ((sequences,), torch.int32),
    }
    for group in range(len(program.groups)):
        shapes[f"slots.{group}"] = ((tokens,), torch.int64)
        shapes[f"block_tables.{group}"] = ((sequences, geometry.table), torch.int32)
    for path, spec in program.caches.items():
        for name, size in (("k", spec.k_size), ("v", spec.v_size)):
            block = block_shape(geometry.kv_dtype, geometry.block_size, spec.kv_heads, size)
            shapes[f"{name}.{path}"] = ((2, *block), element(geometry.kv_dtype))
    return {name: torch.empty(shape, dtype=dtype, device="meta") for name, (shape, dtype) in shapes.items()}


def _run(program: Program, geometry: Geometry, sizes: Sizes) -> dict[Value, Tensor]:
    given = input_tensors(program, geometry, sizes)
    tensors: dict[Value, Tensor] = {value: given[name] for name, value in program.inputs.items()}

    def lookup(value: Value) -> Tensor:
        if value not in tensors:
            assert isinstance(value, Weight)
            tensors[value] = torch.empty(value.shape, dtype=value.dtype(geometry.dtype), device="meta")
        return tensors[value]

    with torch.no_grad():
        for instruction in program.instructions:
            outputs = _outputs(instruction, fill(instruction.args, lookup))
            tensors.update(zip(instruction.results, outputs, strict=True))
    return tensors


def _outputs(instruction: Instruction, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    target = instruction.target
    try:
        if isinstance(target, OpDeclaration):
            made = target.fake(*args)
        else:
            made = target.function(*args, **dict(target.keywords))
        outputs = made if isinstance(made, tuple) else (made,) if instruction.results else ()
        if len(outputs) != len(instruction.results) or not all(isinstance(output, Tensor) for output in outputs):
            raise TypeError(f"it gives {type(made).__name__} where one tensor is expected; index or narrow instead")
    except Exception as error:
        raise PluginError(
            "E-OP-SHAPE",
            f"{target.name} in {instruction.scope or 'the model'}",
            f"can't tell its result's shape: {error}",
            found=", ".join(str(tuple(a.shape)) if isinstance(a, Tensor) else repr(a) for a in args),
        ) from error
    return outputs


def _dim(value: Value, axis: int, runs: list[dict[Value, Tensor]]) -> Dim:
    origin = runs[0][value].shape[axis]
    factors = []
    for probe, run, place in zip(_PROBES, runs[1:], range(3), strict=True):
        factor, rest = divmod(run[value].shape[axis] - origin, probe[place] - _ORIGIN[place])
        if rest:
            raise PluginError("E-OP-SHAPE", value.name, f"axis {axis} does not grow linearly with the step's sizes")
        factors.append(factor)
    constant = origin - sum(factor * size for factor, size in zip(factors, _ORIGIN[:3], strict=True))
    return Dim(constant, *factors)
