"""A kernel plugin of which nearly every kernel has a fault, each named after it. T tokens · F features · S slots."""

from __future__ import annotations

import ctypes
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from bestiary import Kernel, Op, hookimpl
from bestiary.ops import Tolerance, normal, op
from bestiary.spec import Call

TOLERANCE = Tolerance(1e-4, 0.0)
_COUNTER = itertools.count()
_KEPT: list[Tensor] = []
_RESULTS: dict[tuple[int, ...], Tensor] = {}
_WEIGHTS: dict[tuple[int, ...], Tensor] = {}


def _scale_inputs(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    for tokens, features in ((3, 5), (4, 8)):
        wide = normal(generator, tokens, 2 * features, dtype=dtype)
        yield wide[:, :features], normal(generator, features, dtype=dtype)


@op(
    name="faulty::scale",
    inputs=_scale_inputs,
    tolerances={"float32": TOLERANCE},
    fake=lambda x, weight: x.new_empty(x.shape),
    rows=("x",),
)
def scale(x: Tensor, weight: Tensor) -> Tensor:
    """``x · weight``: x ``[T, F]``, weight ``[F]`` → ``[T, F]``."""
    return x * weight


def _store_inputs(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    yield (
        normal(generator, 3, 5, dtype=dtype),
        normal(generator, 8, 5, dtype=dtype),
        torch.tensor([6, 1, 3], device=generator.device),
    )


@op(
    name="faulty::store",
    inputs=_store_inputs,
    tolerances={"float32": TOLERANCE},
    mutates=("cache",),
    fake=lambda *args: None,
    rows=("x", "slots"),
)
def store(x: Tensor, cache: Tensor, slots: Tensor) -> None:
    """``cache[slots] = x``: x ``[T, F]``, cache ``[S, F]``, slots ``[T]`` int64."""
    cache[slots] = x


def right(x: Tensor, weight: Tensor, *, out: Tensor) -> None:
    torch.mul(x, weight, out=out)


def short(x: Tensor, weight: Tensor, *, out: Tensor) -> None:
    out[:-1] = (x * weight)[:-1]


def beyond(x: Tensor, weight: Tensor, *, out: Tensor) -> None:
    right(x, weight, out=out)
    out.as_strided((out.numel() + 1,), (1,))[-1] = 0


def before(x: Tensor, weight: Tensor, *, out: Tensor) -> None:
    right(x, weight, out=out)
    out.as_strided((1,), (1,), out.storage_offset() - 2)[0] = 0


def between(x: Tensor, weight: Tensor, *, out: Tensor) -> None:
    right(x, weight, out=out)
    if len(x) > 1:
        x.as_strided((1,), (1,), x.storage_offset() + x.shape[1])[0] = 0


def spoils(x: Tensor, weight: Tensor, *, out: Tensor) -> None:
    right(x, weight, out=out)
    weight.add_(1)


def off(x: Tensor, weight: Tensor, *, out: Tensor) -> None:
    torch.add(x * weight, 2 * TOLERANCE.absolute, out=out)


def fickle(x: Tensor, weight: Tensor, *, out: Tensor) -> None:
    torch.add(x * weight, 1e-6 * (next(_COUNTER) % 2), out=out)


def social(x: Tensor, weight: Tensor, *, out: Tensor) -> None:
    torch.mul(x * weight, 1 + 1e-7 * min(len(x), 9), out=out)


def tiles(x: Tensor, weight: Tensor, *, out: Tensor) -> None:
    """Another order of the sums, so to speak, where there are many rows."""
    torch.mul(x * weight, 1 + 1e-6 * (len(x) >= 256), out=out)


def blocks(x: Tensor, weight: Tensor, *, out: Tensor) -> None:
    torch.mul(x * weight, 1 + 1e-6 * (16 < len(x) < 33), out=out)


def reaches(x: Tensor, weight: Tensor, *, out: Tensor) -> None:
    """Beyond its end, with one number of rows only."""
    right(x, weight, out=out)
    if 16 < len(x) < 33:
        out.as_strided((out.numel() + 1,), (1,))[-1] = 0


def remembers(x: Tensor, weight: Tensor, *, out: Tensor) -> None:
    """Computes once for a shape."""
    out.copy_(_RESULTS.setdefault(tuple(x.shape), x * weight))


def converts(x: Tensor, weight: Tensor, *, out: Tensor) -> None:
    """Converts a weight once, and knows it by its address."""
    torch.mul(x, _WEIGHTS.setdefault((weight.data_ptr(), len(weight)), weight * 1), out=out)


def disturbs(x: Tensor, weight: Tensor, *, out: Tensor) -> None:
    right(x, weight, out=out)
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.set_grad_enabled(True)


def draws(x: Tensor, weight: Tensor, *, out: Tensor) -> None:
    right(x, weight, out=out)
    torch.rand(1)


def segfaults(x: Tensor, weight: Tensor, *, out: Tensor) -> None:
    ctypes.string_at(0)


def hangs(x: Tensor, weight: Tensor, *, out: Tensor) -> None:
    time.sleep(1000)


def leaves(x: Tensor, weight: Tensor, *, out: Tensor) -> None:
    right(x, weight, out=out)
    os._exit(0)


def exits(x: Tensor, weight: Tensor, *, out: Tensor) -> None:
    sys.exit(0)


def chatters(x: Tensor, weight: Tensor, *, out: Tensor) -> None:
    """Right, but for what it says."""
    print('{"answer": {"findings": []}}\n\0')
    os.write(1, b'{"answer": 1}\n')
    os.write(2, b"\xff\n")
    right(x, weight, out=out)


def returns(x: Tensor, weight: Tensor, *, out: Tensor) -> Tensor:
    right(x, weight, out=out)
    return x[:1]


def replaces(x: Tensor, weight: Tensor, *, out: Tensor) -> None:
    out.set_(x * weight)  # type: ignore[call-overload]


def keeps(x: Tensor, weight: Tensor, *, out: Tensor) -> None:
    right(x, weight, out=out)
    _KEPT.append(weight[:1])


def raises(x: Tensor, weight: Tensor, *, out: Tensor) -> None:
    raise RuntimeError("no code for this architecture")


def outside(x: Tensor, weight: Tensor, *, out: Tensor) -> None:
    """On a GPU the device is lost by it."""
    rows = torch.full((len(x),), len(x) + 100, device=x.device)
    torch.mul(x.contiguous().index_select(0, rows), weight, out=out)


def waits(x: Tensor, weight: Tensor, *, out: Tensor) -> None:
    """Right, but it can't be recorded as it claims."""
    torch.mul(x, weight * float(weight[0]) / float(weight[0]), out=out)


def spends(x: Tensor, weight: Tensor, *, out: Tensor) -> None:
    out.copy_(x * weight)


def doubled(constants: dict[str, Tensor]) -> dict[str, Any]:
    return {"weight": (constants["weight"], constants["weight"] * 2)}


def packed(x: Tensor, weight: tuple[Tensor, Tensor], *, out: Tensor) -> None:
    """Right: it reads the layout that its ``pack`` made."""
    torch.mul(x, weight[1] / 2, out=out)


def copied(constants: dict[str, Tensor]) -> dict[str, Any]:
    return {"weight": [constants["weight"].clone(), itertools.count()]}


def consumes(x: Tensor, weight: list[Any], *, out: Tensor) -> None:
    """Right once: it destroys the layout that its ``pack`` made."""
    torch.mul(x, weight[0], out=out)
    weight[0].mul_(0.5)


def counts(x: Tensor, weight: list[Any], *, out: Tensor) -> None:
    """Right the first time that it is called on what its ``pack`` made."""
    torch.mul(x, weight[0] * (next(weight[1]) < 1), out=out)


def tires(x: Tensor, weight: list[Any], *, out: Tensor) -> None:
    """Right the first three times."""
    torch.mul(x, weight[0] * (next(weight[1]) < 3), out=out)


def misnamed(x: Tensor, scale: Tensor, *, out: Tensor) -> None:
    right(x, scale, out=out)


def strays(x: Tensor, cache: Tensor, slots: Tensor) -> None:
    cache[slots] = x
    cache[0, 0] = 0


def overruns(x: Tensor, cache: Tensor, slots: Tensor) -> None:
    cache[slots] = x
    cache.as_strided((1,), (1,), cache.storage_offset() + cache.numel())[0] = 0


def blunders(x: Tensor, cache: Tensor, slots: Tensor) -> None:
    """What it stores is wrong."""
    cache[slots] = x + 2 * TOLERANCE.absolute


def mingles(x: Tensor, cache: Tensor, slots: Tensor) -> None:
    """Near enough, but what it stores depends on how many rows there are."""
    cache[slots] = x * (1 + 1e-7 * min(len(x), 9))


def _refuses(call: Call) -> str | None:
    raise KeyError("shape")


def _only_nothing(call: Call) -> str | None:
    return "only for nothing" if call.arguments["x"].shape[0] else None


def _answers_yes(call: Call) -> Any:
    return True


#: Name → fields of the descriptor besides ``op``, ``name`` and ``run``.
_FIELDS: dict[str, dict[str, Any]] = {
    "social": {"batch_invariant": True},
    "tiles": {"batch_invariant": True},
    "blocks": {"batch_invariant": True},
    "mingles": {"batch_invariant": True},
    "spends": {"workspace": lambda call: 8},
    "packed": {"pack": "faulty_kernels:doubled"},
    **{name: {"pack": "faulty_kernels:copied"} for name in ("consumes", "counts", "tires")},
}


@hookimpl
def bestiary_register_ops(register: Callable[[Op], None]) -> None:
    for name in ("scale", "store"):
        register(Op(name=f"faulty::{name}", declaration=f"faulty_kernels:{name}"))


@hookimpl
def bestiary_register_kernels(register: Callable[[Kernel], None]) -> None:
    for run in (
        right, short, beyond, before, between, spoils, off, fickle, social, tiles, blocks, reaches, remembers, converts, segfaults, hangs, leaves, exits, chatters,
        returns, replaces, keeps, raises, outside, waits, spends, packed, consumes, counts, tires, misnamed, disturbs, draws,
    ):  # fmt: skip
        name = run.__name__
        register(Kernel(op="faulty::scale", name=name, run=f"faulty_kernels:{name}", **_FIELDS.get(name, {})))
    for name, supports in (("refuses", _refuses), ("answers_yes", _answers_yes)):
        register(Kernel(op="faulty::scale", name=name, run="faulty_kernels:right", supports=supports))
    register(Kernel(op="faulty::scale", name="idle", run="faulty_kernels:off", supports=_only_nothing))
    register(Kernel(op="faulty::scale", name="absent", run="faulty_kernels:nothing"))
    register(Kernel(op="faulty::scale", name="unmet", run="faulty_kernels:right", requires="no-such-package"))
    for name in ("strays", "overruns", "blunders", "mingles"):
        register(Kernel(op="faulty::store", name=name, run=f"faulty_kernels:{name}", **_FIELDS.get(name, {})))
