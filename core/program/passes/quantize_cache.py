"""A cache of few bits: the ops that write and read keys and values become those that know codes and scales."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from bestiary.core.checkpoint.kv_scales import names_of
from bestiary.core.errors import ConfigError
from bestiary.core.ops.attention import kv_write, paged_attention
from bestiary.core.ops.collective import Ranks
from bestiary.core.ops.declare import OpDeclaration
from bestiary.core.ops.quantized_cache import quantized_kv_write, quantized_paged_attention
from bestiary.core.plugins import PluginHost
from bestiary.core.program.passes.shard import bounds
from bestiary.core.program.program import Input, Instruction, Part, Program, Weight


def quantize_cache(
    program: Program, kind: str, block_size: int, ranks: Ranks, calibrated: Collection[str], host: PluginHost
) -> None:
    """Replace the ops in place. To be called after sharding, whose share of the heads each cache has then.

    Args:
        kind: one of :data:`~bestiary.core.kv_format.KINDS`.
        ranks: that the heads are divided among.
        calibrated: paths of the caches that have ``<path>.k_scale`` and ``<path>.v_scale``, fp32 ``[K]``, in the checkpoint.

    Raises:
        ConfigError: another op takes a cache; names it and its plugin.
    """
    caches = {program.inputs[f"{name}.{path}"]: (name, path) for path in program.caches for name in "kv"}
    for instruction in program.instructions:
        used = [value for value in instruction.values() if isinstance(value, Input) and value in caches]
        if not used:
            continue
        if instruction.target is kv_write:
            k, v, k_cache, v_cache, slots = instruction.args
            scales = [_scale(program, *caches[cache], ranks, calibrated) for cache in (k_cache, v_cache)]
            instruction.target = quantized_kv_write
            instruction.args = (k, v, k_cache, v_cache, slots, kind, block_size, *scales)
        elif instruction.target is paged_attention:
            name, path = caches[instruction.args[2]]
            spec = program.caches[path]
            size = spec.k_size if name == "k" else spec.v_size
            instruction.target = quantized_paged_attention
            instruction.args = (*instruction.args, kind, block_size, spec.kv_heads, size)
        else:
            raise _refused(instruction, kind, host)


def _scale(program: Program, name: str, path: str, ranks: Ranks, calibrated: Collection[str]) -> Weight | None:
    """This rank's part of a cache's calibrated scales."""
    if path not in calibrated:
        return None
    heads = program.groups[program.group_of[path]].kv_heads
    start, stop = bounds(heads, heads, ranks, path)
    parameter = names_of(path)["kv".index(name)]
    return Weight(parameter, (Part(parameter, (stop - start,), 0, start, stop, dtype="float32"),))


def _refused(instruction: Instruction, kind: str, host: PluginHost) -> ConfigError:
    target: OpDeclaration[..., Any] | Any = instruction.target
    plugin = f" ({host.origin(host.op(target.name))})" if isinstance(target, OpDeclaration) else ""
    return ConfigError(
        "E-BUILD-OPTION",
        "kv_dtype",
        f"{target.name}{plugin} in {instruction.scope or 'the model'} takes a cache of elements, and knows no codes and scales",
        found=kind,
        expected=f"auto, float32, bfloat16 or float16, or a model whose caches only {kv_write.name} and "
        f"{paged_attention.name} use",
        hint="leave kv_dtype out",
    )
