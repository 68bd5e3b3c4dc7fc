"""A sample step to choose kernels on: real positions, blocks and lengths, random tokens and cache contents."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bestiary.core.ops.kv_blocks import blocks_of
from bestiary.core.program.program import Program
from bestiary.core.program.shapes import Geometry, Sizes

_CONTEXT = 256  # tokens a sample decode has behind it, where the engine allows as many


def sample_inputs(
    program: Program, geometry: Geometry, sizes: Sizes, vocab_size: int, device: torch.device
) -> Mapping[str, Tensor]:
    """Inputs of a step in which T tokens are divided evenly among N sequences (T a multiple of N)."""
    tokens, sequences, rows, _ = sizes
    each = tokens // sequences
    capacity = geometry.table * geometry.block_size
    length = min(max(each, _CONTEXT if each == 1 else each), capacity)
    generator = torch.Generator().manual_seed(0)
    positions = torch.arange(length - each, length).clamp(min=0).repeat(sequences)
    inputs = {
        "tokens": torch.randint(vocab_size, (tokens,), generator=generator),
        "positions": positions,
        "lengths": torch.full((tokens,), length),
        "logit_rows": torch.arange(rows) % tokens,
        "query_starts": torch.arange(0, tokens + 1, each, dtype=torch.int32),
        "kv_lengths": torch.full((sequences,), length, dtype=torch.int32),
    }
    blocks = -(-length // geometry.block_size)
    table = torch.zeros(sequences, geometry.table, dtype=torch.int32)
    table[:, :blocks] = torch.randperm(sequences * blocks, generator=generator).view(sequences, blocks).int()
    owner = torch.arange(sequences).repeat_interleave(each)
    slots = table[owner, positions // geometry.block_size].long() * geometry.block_size
    slots += positions % geometry.block_size
    for group in range(len(program.groups)):
        inputs[f"slots.{group}"], inputs[f"block_tables.{group}"] = slots, table
    made = {name: tensor.to(device) for name, tensor in inputs.items()}
    return {**made, **_caches(program, geometry, sequences * blocks + 1, device)}


def _caches(program: Program, geometry: Geometry, blocks: int, device: torch.device) -> dict[str, Tensor]:
    """Every layer of a shape shows the same memory: one call is measured at a time."""
    shared: dict[tuple[int, ...], Tensor] = {}
    caches = {}
    for path, spec in program.caches.items():
        for name, size in (("k", spec.k_size), ("v", spec.v_size)):
            shape = (blocks, geometry.block_size, spec.kv_heads, size)
            if shape not in shared:
                values, dtype = torch.randn(shape, device=device), geometry.kv_dtype
                shared[shape] = blocks_of(values, dtype) if isinstance(dtype, str) else values.to(dtype)
            caches[f"{name}.{path}"] = shared[shape]
    return caches
