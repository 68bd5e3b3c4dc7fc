"""The canary as a model plugin: its layers write and read the engine's own paged caches through ops of their own.

What a token stores and what a query sums up are ``canary``'s arithmetic, whose numbers are exact in float32. Layer g has the
window ``windows[g]``; the next token is the sum of all layers' checksums. A batch of any shape gives the same numbers.

T packed tokens · N sequences · R rows · P blocks of a sequence · B blocks · S block size.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from canary_numbers import PRIME, VOCAB, first_seen, key, term, value
from torch import Tensor, nn

from bestiary import LLM, Kernel, Model, Op, hookimpl, ops
from bestiary.layers import CacheSpec, CausalLM, KVCache, LayerStack, Step
from bestiary.ops import Tolerance, integers, op
from bestiary.spec import ModelConfig

#: Smaller floats don't hold the numbers.
TOLERANCES = {"float32": Tolerance(0.0, 0.0)}


class CanaryConfig(ModelConfig):
    windows: list[int | None]


@hookimpl
def bestiary_register_models(register: Callable[[Model], None]) -> None:
    register(
        Model(
            name="canary",
            architectures=("CanaryForCausalLM",),
            config="canary_model:CanaryConfig",
            model="canary_model:Canary",
            weights={},
        )
    )


@hookimpl
def bestiary_register_ops(register: Callable[[Op], None]) -> None:
    for name in ("store", "checksum", "logits"):
        register(Op(name=f"canary::{name}", declaration=f"canary_model:{name}"))


@hookimpl
def bestiary_register_kernels(register: Callable[[Kernel], None]) -> None:
    register(
        Kernel(
            op="canary::checksum",
            name="gathered",
            run="canary_model:gathered_checksum",
            batch_invariant=True,
            graph_safe=False,
        )
    )


def write_config(directory: Path, *, windows: tuple[int | None, ...] = (None,), length: int = 512) -> Path:
    """A directory that ``LLM(…, weights="random")`` opens as a canary."""
    config = {
        "architectures": ["CanaryForCausalLM"],
        "model_type": "canary",
        "vocab_size": VOCAB,
        "hidden_size": 1,
        "num_hidden_layers": len(windows),
        "max_position_embeddings": length,
        "torch_dtype": "float32",
        "windows": list(windows),
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def _case(generator: torch.Generator, window: int | None) -> tuple[list[Tensor], list[Tensor]]:
    """Caches of a decode, a later chunk, a whole prompt and padding, and the indices of the step."""
    queries, lengths = torch.tensor([1, 3, 5, 0]), torch.tensor([9, 7, 5, 0])
    starts = torch.cat((queries.new_zeros(1), queries.cumsum(0)))
    tables = torch.randperm(12, generator=generator).view(4, 3).int()
    positions = [torch.arange(length - query, length) for query, length in zip(queries, lengths, strict=True)]
    slots = [tables[n, p // 4].long() * 4 + p % 4 for n, p in enumerate(positions)]
    caches = [torch.randint(PRIME, (13, 4, 1, 1), generator=generator).float() for _ in "kv"]
    return caches, [tables, starts.int(), lengths.int(), torch.cat(positions), torch.cat(slots)]


def _store_inputs(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    for layer in (0, 1):
        caches, (tables, starts, lengths, positions, slots) = _case(generator, None)
        tokens = torch.randint(VOCAB, (len(positions),), generator=generator)
        yield tokens, positions, *caches, slots, tables, starts, lengths, layer


def _nothing(*args: Any) -> None:
    return None


@op(inputs=_store_inputs, tolerances=TOLERANCES, mutates=("k_cache", "v_cache"), fake=_nothing, name="canary::store")
def store(
    tokens: Tensor,
    positions: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    block_tables: Tensor,
    query_starts: Tensor,
    kv_lengths: Tensor,
    layer: int,
) -> None:
    """Store each token's ``key(key before, token, position)`` and ``value(key, position)`` in its slot.

    tokens, positions, slots ``[T]`` int64, k_cache, v_cache ``[B, S, 1, 1]``, block_tables ``[N, P]`` int32, query_starts
    ``[N + 1]`` int32, kv_lengths ``[N]`` int32. The key before a sequence's first new token is read from its block.
    """
    size, starts, lengths = k_cache.shape[1], query_starts.tolist(), kv_lengths.tolist()
    ids, places = tokens.tolist(), positions.tolist()
    keys, values = k_cache.view(-1), v_cache.view(-1)
    for n, length in enumerate(lengths):
        rows = range(starts[n], starts[n + 1])
        before = length - len(rows) - 1
        last = 0.0 if before < 0 else float(keys[int(block_tables[n, before // size]) * size + before % size])
        made = []
        for row in rows:
            last = key(last, ids[row], places[row], layer)
            made.append((last, value(last, places[row])))
        if made:
            pairs = torch.tensor(made, dtype=torch.float32, device=keys.device)
            where = slots[rows.start : rows.stop]
            keys[where], values[where] = pairs[:, 0].to(keys.dtype), pairs[:, 1].to(values.dtype)


def _checksum_inputs(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    for window in (None, 3):
        caches, (tables, starts, lengths, positions, _) = _case(generator, window)
        yield positions, *caches, tables, starts, lengths, window


def _one_number(positions: Tensor, k_cache: Tensor, *rest: Any) -> Tensor:
    return k_cache.new_empty(len(positions), 1)


@op(inputs=_checksum_inputs, tolerances=TOLERANCES, fake=_one_number, name="canary::checksum")
def checksum(
    positions: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    query_starts: Tensor,
    kv_lengths: Tensor,
    window: int | None,
) -> Tensor:
    """``Σ term(key, value, position) mod PRIME`` over the positions that each query sees, its own included.

    positions ``[T]`` int64, k_cache, v_cache ``[B, S, 1, 1]``, block_tables ``[N, P]`` int32, query_starts ``[N + 1]`` int32,
    kv_lengths ``[N]`` int32 → ``[T, 1]``.
    """
    size, starts = k_cache.shape[1], query_starts.tolist()
    sums = k_cache.new_zeros(len(positions), 1)
    for n in range(len(block_tables)):
        for row in range(starts[n], starts[n + 1]):
            last, total = int(positions[row]), 0.0
            for place in range(first_seen(window, last), last + 1):
                block, offset = int(block_tables[n, place // size]), place % size
                total += term(float(k_cache[block, offset]), float(v_cache[block, offset]), place)
            sums[row] = total % PRIME
    return sums


def gathered_checksum(
    positions: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    query_starts: Tensor,
    kv_lengths: Tensor,
    window: int | None,
    *,
    out: Tensor,
) -> None:
    """A sequence at a time, only what its queries see, in sums that are exact."""
    size, starts, lengths = k_cache.shape[1], query_starts.tolist(), kv_lengths.tolist()
    out.zero_()
    for n, length in enumerate(lengths):
        rows = slice(starts[n], starts[n + 1])
        if rows.start == rows.stop:
            continue
        places = torch.arange(first_seen(window, length - (rows.stop - rows.start)), length, device=out.device)
        slots = block_tables[n, places // size].long() * size + places % size
        terms = term(k_cache.view(-1)[slots], v_cache.view(-1)[slots], places).double()
        behind = positions[rows].unsqueeze(1) - places
        seen = behind >= 0 if window is None else (behind >= 0) & (behind < window)
        out[rows, 0] = (torch.where(seen, terms, 0.0).sum(1) % PRIME).to(out.dtype)


def _logits_inputs(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    yield integers(generator, 2 * PRIME, 3, 1).to(dtype), VOCAB


def _wide(sums: Tensor, vocab: int) -> Tensor:
    return sums.new_empty(len(sums), vocab)


@op(inputs=_logits_inputs, tolerances=TOLERANCES, fake=_wide, name="canary::logits")
def logits(sums: Tensor, vocab: int) -> Tensor:
    """``−min(|v − sum mod PRIME|, 50)`` for token v: sums ``[R, 1]`` → ``[R, vocab]``; what is no number stays none."""
    tokens = torch.arange(vocab, dtype=sums.dtype, device=sums.device)
    return -(tokens - sums % PRIME).abs().clamp(max=50.0)


class CanaryLayer(nn.Module):
    def __init__(self, index: int, window: int | None) -> None:
        super().__init__()
        self.cache = KVCache(CacheSpec(1, 1, 1, window))
        self.index, self.window = index, window

    def forward(self, step: Step) -> Tensor:  # [T, 1]
        memory = step.cache(self.cache)
        indices = (memory.block_tables, step.query_starts, step.kv_lengths)
        store(step.tokens, step.positions, memory.k, memory.v, memory.slots, *indices, self.index)
        return checksum(step.positions, memory.k, memory.v, *indices, self.window)


class Canary(CausalLM):
    def __init__(self, c: CanaryConfig) -> None:
        super().__init__()
        self.layers = LayerStack(len(c.windows), lambda index: CanaryLayer(index, c.windows[index]))
        self.vocab = c.vocab_size

    def forward(self, step: Step) -> Tensor:
        sums = self.layers[0](step)
        for layer in list(self.layers)[1:]:
            sums = sums + layer(step)
        return logits(ops.select_rows(sums, step.logit_rows), self.vocab)


def poison(llm: LLM) -> None:
    """NaN in every block that is free."""
    store, pools = llm.engine.runner.inputs.store, llm._driver.loop.scheduler.tables.pools
    for members, pool in zip(store._members, pools, strict=True):
        for tensor in members:
            tensor[torch.tensor(pool._free, dtype=torch.int64)] = math.nan
