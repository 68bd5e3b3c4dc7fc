"""What there is to check: a host's ops and kernels, and the calls that an op's declaration makes of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from bestiary.core import device as devices
from bestiary.core.ops.declare import OpDeclaration
from bestiary.core.plugins import PluginHost
from bestiary.core.program.calls import load_op
from bestiary.core.program.compare import layout
from bestiary.spec import Call, Kernel, TensorFacts

#: Numbers of rows that batches are made with: none, one, whole tiles, and a row more than a tile, a warp, a block and a
#: build's steps have.
ROWS = (0, 1, 7, 17, 64, 65, 128, 256, 513)
#: The most for ops that derive a batch with a function of their own, which is slow: sequences for attention.
MOST_DERIVED = 65
#: An input with a tensor of more elements is large, as a model's are. Batches made of it, which take long, have so many
#: rows: a step's single token, and a tile of them.
LARGE = 2**16
ROWS_OF_LARGE = (1, 64)


@dataclass(frozen=True)
class OpCase:
    """A declared op."""

    op: OpDeclaration[..., Any]

    def __str__(self) -> str:
        return self.op.name


@dataclass(frozen=True)
class KernelCase:
    """A registered kernel of an op, on a device, in a dtype."""

    op: OpDeclaration[..., Any]
    kernel: Kernel
    device: str
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.op.name}={self.kernel.name}-{self.device}-{str(self.dtype).removeprefix('torch.')}"


def load_plugins(*plugins: ModuleType | str) -> PluginHost:
    """The installed plugins and those given, loaded strictly."""
    return PluginHost.load(plugins=plugins, strict=True)


def op_cases(host: PluginHost, names: Sequence[str] | None = None) -> list[OpCase]:
    """Every registered op, or those named."""
    return [OpCase(load_op(op.name, host)) for op in host.ops() if names is None or op.name in names]


def kernel_cases(host: PluginHost, names: Sequence[str] | None = None, device: str = "cpu") -> list[KernelCase]:
    """Every registered kernel (or those of the named plugins) in every dtype that its op has a tolerance for."""
    cases = []
    for kernel in host.kernels():
        if names is None or host.origin(kernel).plugin in names:
            op = load_op(kernel.op, host)
            cases += [KernelCase(op, kernel, device, dtype) for dtype in dtypes(op)]
    return cases


def dtypes(op: OpDeclaration[..., Any]) -> list[torch.dtype]:
    """Those that kernels of the op are checked in; float64 is for references."""
    return [getattr(torch, name) for name in op.tolerances if name != "float64"]


@dataclass(frozen=True)
class Batch:
    """A call to check.

    Args:
        source: which of the op's own inputs it was made from.
        args: in the op's order.
        numbers: of the source's rows that it has; None where it is the source itself.
    """

    source: int
    args: tuple[Any, ...]
    numbers: tuple[int, ...] | None = None

    def __str__(self) -> str:
        rows = "" if self.numbers is None else f" with {len(self.numbers)} rows"
        return f"input {self.source}{rows} ({', '.join(_text(arg) for arg in self.args)})"


def batches(op: OpDeclaration[..., Any], device: torch.device, dtype: torch.dtype, seed: int = 2) -> Iterator[Batch]:
    """The op's own inputs, and where it declares its rows, batches of other sizes made from each."""
    generator = torch.Generator(device).manual_seed(seed)
    for index, args in enumerate(op.inputs(generator, dtype)):
        own = Batch(index, tuple(args))
        yield own
        count = row_count(op, own.args)
        if count:
            for rows in sizes(op, large=large(own)):
                yield take(op, own, [number % count for number in range(rows)])


def sizes(op: OpDeclaration[..., Any], *, large: bool = False) -> list[int]:
    """How many rows the batches made of one of an op's own inputs have, in order."""
    return [rows for rows in (ROWS_OF_LARGE if large else ROWS) if rows <= MOST_DERIVED or not callable(op.rows)]


def large(batch: Batch) -> bool:
    """Whether a call has a tensor as large as a model's."""
    return any(isinstance(arg, Tensor) and arg.numel() > LARGE for arg in batch.args)


def row_count(op: OpDeclaration[..., Any], args: tuple[Any, ...]) -> int | None:
    """How many rows a call has; None where the op does not declare them."""
    if not op.rows:
        return None
    first = args[0] if callable(op.rows) else args[op.parameters.index(op.rows[0])]
    assert isinstance(first, Tensor), f"op {op.name}: its rows are counted on the first axis of a tensor"
    return first.shape[0]


def take(op: OpDeclaration[..., Any], batch: Batch, numbers: Sequence[int]) -> Batch:
    """The call for some of the batch's rows only, in the order given; each may come several times."""
    if callable(op.rows):
        return Batch(batch.source, tuple(op.rows(batch.args, numbers)), tuple(numbers))
    args = (
        _rows_of(arg, numbers) if name in op.rows and isinstance(arg, Tensor) else arg
        for name, arg in zip(op.parameters, batch.args, strict=True)
    )
    return Batch(batch.source, tuple(args), tuple(numbers))


def _rows_of(tensor: Tensor, numbers: Sequence[int]) -> Tensor:
    """Rows of a tensor, as far apart as they were: a slice of a wider tensor stays one."""
    chosen = torch.tensor(list(numbers), dtype=torch.int64, device=tensor.device)
    rows = tensor.index_select(0, chosen)
    if tensor.stride(0) < rows.stride(0):
        return rows  # they shared memory
    made = torch.empty_strided(rows.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    return made.copy_(rows)


def alike(first: Batch, second: Batch) -> bool:
    """Whether two calls differ in the values of their tensors only."""
    return all(
        layout(one)[:-1] == layout(other)[:-1]
        if isinstance(one, Tensor) and isinstance(other, Tensor)
        else not isinstance(one, Tensor) and not isinstance(other, Tensor) and one == other
        for one, other in zip(first.args, second.args, strict=True)
    )


def describe_call(op: OpDeclaration[..., Any], args: tuple[Any, ...], device: torch.device) -> Call:
    """What ``Kernel.supports`` and ``Kernel.workspace`` are asked."""
    facts = {
        name: TensorFacts(tuple(arg.shape), _name(arg.dtype), arg.is_contiguous()) if isinstance(arg, Tensor) else arg
        for name, arg in zip(op.parameters, args, strict=True)
    }
    return Call(op.name, facts, device.type, devices.features(device))


def constants(op: OpDeclaration[..., Any], args: tuple[Any, ...]) -> dict[str, Tensor]:
    """What a build gives a kernel's ``pack``: the tensors that are a model's weights."""
    named = zip(op.parameters, args, strict=True)
    return {name: arg for name, arg in named if isinstance(arg, Tensor) and name in op.constants}


def _text(arg: Any) -> str:
    return f"{_name(arg.dtype)}{list(arg.shape)}" if isinstance(arg, Tensor) else repr(arg)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
