"""What layers write to and read from their caches, against what the caches were declared to hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bestiary.core.errors import PluginError
from bestiary.core.ops.declare import OpDeclaration
from bestiary.core.program.program import Input, Program, Value
from bestiary.core.program.shapes import Shape

_SUFFIX = "_cache"  # an op that writes has k and k_cache, v and v_cache; one that reads has q and k_cache


def check_caches(program: Program, shapes: Mapping[Value, Shape], owner: str) -> None:
    """Refuse a cache of other heads than its layer's keys, values and queries have: kernels would miss their place.

    Looked at are tensors [T, heads, D] beside caches [blocks, tokens, heads, D]; what an op does with others is its own.

    Args:
        owner: the model, for the error.

    Raises:
        PluginError: naming the cache, with the arithmetic.
    """
    for instruction in program.instructions:
        if isinstance(op := instruction.target, OpDeclaration):
            given = dict(zip(op.parameters, instruction.args, strict=True))
            for name, cache in given.items():
                if name.endswith(_SUFFIX) and isinstance(cache, Input):
                    _check(op, name, cache, given, shapes, owner)


def _check(
    op: OpDeclaration[..., Any],
    name: str,
    cache: Input,
    given: Mapping[str, Any],
    shapes: Mapping[Value, Shape],
    owner: str,
) -> None:
    what = name.removesuffix(_SUFFIX)
    beside = given.get(what if name in op.mutates else "q")
    if not isinstance(beside, Value) or len(shapes[beside].dims) != 3 or len(shapes[cache].dims) != 4:
        return
    (heads, size), (kv_heads, declared) = _last(shapes[beside]), _last(shapes[cache])
    subject = f"{owner}, cache {cache.name.partition('.')[2]}"
    if name in op.mutates and (heads, size) != (kv_heads, declared):
        found, expected = f"{heads} × {size} = {heads * size}", f"{kv_heads} × {declared} = {kv_heads * declared}"
        raise _wrong(subject, f"is declared with other kv_heads × {what}_size than {op.name} is given", found, expected)
    if heads % kv_heads:
        found = f"{heads} = {heads // kv_heads} × {kv_heads} + {heads % kv_heads}"
        raise _wrong(subject, f"does not fit the heads that {op.name} asks with", found, f"a multiple of {kv_heads}")


def _wrong(subject: str, problem: str, found: str, expected: str) -> PluginError:
    return PluginError("E-MODEL-CACHE", subject, problem, found=found, expected=expected)


def _last(shape: Shape) -> tuple[int, int]:
    return shape.dims[-2].constant, shape.dims[-1].constant
