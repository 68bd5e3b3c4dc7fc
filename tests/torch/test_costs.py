"""Costs of the core's ops, against numbers counted by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bestiary import ops
from bestiary.core.config import Rope
from bestiary.core.ops import collective
from bestiary.ops import Cost, OpDeclaration

BF16, F16, F32, I32, I64 = torch.bfloat16, torch.float16, torch.float32, torch.int32, torch.int64
I8, U8 = torch.int8, torch.uint8


def t(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


def ints(*values: int, dtype: torch.dtype = I32) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


def attention(starts: tuple[int, ...], lengths: tuple[int, ...], window: int | None) -> tuple[Any, ...]:
    """4 heads of 8, 2 of keys (8) and values (6), blocks of 4."""
    q, k, v = t(starts[-1], 4, 8), t(16, 4, 2, 8), t(16, 4, 2, 6)
    return q, k, v, t(len(lengths), 8, dtype=I32), ints(*starts), ints(*lengths), 1.0, window


def quantized(kind: str) -> tuple[Any, ...]:
    """The decode of 9 keys and values, of which these are a block's bytes of two heads of 8, and of 6."""
    q, _, _, *others = attention((0, 1), (9,), None)
    return q, t(16, 96, dtype=torch.uint8), t(16, 80, dtype=torch.uint8), *others, kind, 4, 2, 6


def int8(*shape: int) -> tuple[Any, ...]:
    """A weight with a scale for each row, and no zeros."""
    return t(*shape, dtype=I8), t(*shape[:-1], 1, dtype=F32), None


TWO = collective.Ranks(0, 2, None)

COUNTED = {
    "linear": (ops.linear, (t(5, 32), t(16, 32)), 2 * 5 * 16 * 32, 2 * (5 * 32 + 16 * 32 + 5 * 16)),
    "linear with a bias": (ops.linear, (t(5, 32), t(16, 32), t(16)), 5120 + 80, 2 * (160 + 512 + 16 + 80)),
    "logits are fp32": (ops.logits, (t(3, 32), t(96, 32)), 2 * 3 * 96 * 32, 2 * (96 + 3072) + 4 * 288),
    # ids, the rows that are looked up in bf16, the same in fp32
    "embedding": (ops.embedding, (ints(1, 2, 3, dtype=I64), t(96, 32)), 0, 24 + 192 + 384),
    "embedding of a rank": (ops.embedding_shard, (ints(1, 2, 3, dtype=I64), t(48, 32), 48), 0, 600),
    "rms_norm": (ops.rms_norm, (t(5, 32, dtype=F32), t(32), 1e-5), 640, 640 + 64 + 320),
    "add_rms_norm": (ops.add_rms_norm, (t(5, 32, dtype=F32), t(5, 32), t(32), 1e-5), 800, 640 + 320 + 64 + 320 + 640),
    "gated_activation": (ops.gated_activation, (t(5, 32), t(5, 32), "silu"), 5 * 160, 3 * 320),
    "sigmoid_gate": (ops.sigmoid_gate, (t(5, 32), t(5, 1, dtype=F32)), 20 + 160, 320 + 20 + 320),
    "add": (ops.add, (t(5, 32, dtype=F32), t(5, 32)), 160, 640 + 320 + 640),
    "mul broadcasts": (ops.mul, (t(5, 32), t(5, 1)), 160, 320 + 10 + 320),
    "select_rows": (ops.select_rows, (t(9, 32), ints(1, 2, dtype=I64)), 0, 16 + 2 * 2 * 64),
    "rope": (ops.rope, (t(5, 4, 8), t(5, 6, dtype=F32)), 3 * 5 * 4 * 6, 320 + 120 + 320),
    "rotary_table": (ops.rotary_table, (ints(0, 1, dtype=I64), ints(1, 2, dtype=I64), Rope(), 8), 32, 16 + 64),
    "kv_write": (
        ops.kv_write,
        (t(3, 2, 8), t(3, 2, 6), t(4, 4, 2, 8, dtype=F32), t(4, 4, 2, 6), ints(0, 1, 2, dtype=I64)),
        0,
        96 + 72 + 24 + 192 + 72,
    ),
    "rope_kv_write": (
        ops.rope_kv_write,
        (
            t(3, 4, 8),
            t(3, 2, 8),
            t(3, 2, 6),
            t(3, 8, dtype=F32),
            t(4, 4, 2, 8),
            t(4, 4, 2, 6),
            ints(0, 1, 2, dtype=I64),
        ),
        3 * 3 * 4 * 8 + 3 * 3 * 2 * 8,
        192 + 96 + 192 + (96 + 72 + 24 + 96 + 72),
    ),
    # 9 keys are seen, in 3 blocks; q 64 bytes, made 48, 2 starts and 1 length of 4
    "attention, a decode": (
        ops.paged_attention,
        attention((0, 1), (9,), None),
        2 * 9 * 4 * (8 + 6),
        64 + 9 * 2 * (16 + 12) + 48 + (3 + 3) * 4,
    ),
    # a prompt of 3 sees 1 + 2 + 3 keys; then 2 tokens at 5 and 6 see 6 + 7
    "attention, a prompt and a chunk": (
        ops.paged_attention,
        attention((0, 3, 5), (3, 7), None),
        2 * (6 + 13) * 4 * 14,
        5 * 64 + (3 + 7) * 56 + 5 * 48 + (1 + 2 + 5) * 4,
    ),
    # 2 tokens at 5 and 6 see 3 keys each, from 3 on: 4 keys, in the blocks 0 and 1
    "attention with a window": (
        ops.paged_attention,
        attention((0, 2), (7,), 3),
        2 * 6 * 4 * 14,
        2 * 64 + 4 * 56 + 2 * 48 + (2 + 3) * 4,
    ),
    # as a decode; of each key 2 heads of 8 codes, of each value 2 of 6, with 4 bytes of scales each
    "attention over int8": (
        ops.quantized_paged_attention,
        quantized("int8"),
        2 * 9 * 4 * (8 + 6),
        64 + 9 * 2 * (12 + 10) + 48 + (3 + 3) * 4,
    ),
    "attention over int4": (
        ops.quantized_paged_attention,
        quantized("int4"),
        2 * 9 * 4 * (8 + 6),
        64 + 9 * 2 * (8 + 7) + 48 + (3 + 3) * 4,
    ),
    "quantized_kv_write": (
        ops.quantized_kv_write,
        (t(3, 2, 8), t(3, 2, 6), *(t(4, 80, dtype=torch.uint8),) * 2, ints(0, 1, 2, dtype=I64), "fp8", 4, None, None),
        2 * 3 * 2 * 14,
        96 + 72 + 24 + 3 * 2 * (12 + 10),
    ),
    "rope_quantized_kv_write": (
        ops.rope_quantized_kv_write,
        (
            t(3, 4, 8),
            t(3, 2, 8),
            t(3, 2, 5),
            t(3, 8, dtype=F32),
            *(t(4, 80, dtype=torch.uint8),) * 2,
            ints(0, 1, 2, dtype=I64),
            "int4",
            4,
            t(2, dtype=F32),
            t(2, dtype=F32),
        ),
        3 * 3 * 4 * 8 + 3 * 3 * 2 * 8 + 2 * 3 * 2 * 13,
        192 + 96 + 192 + (96 + 60 + 24 + 16 + 3 * 2 * (8 + 7)),
    ),
    "attention of padding": (ops.paged_attention, attention((0, 0), (0,), None), 0, 3 * 4),
    # softmax over 8 of 3 tokens, two chosen, summed and divided and scaled
    "moe_route": (ops.moe_route, (t(3, 8), 2, "softmax", True, 1.0), 4 * 24 + 3 * 6, 48 + 6 * 8),
    # 4 pairs of token and expert, of 3 different experts out of 8
    "moe": (
        ops.moe,
        (t(2, 16), t(2, 2, dtype=F32), ints(0, 3, 3, 5).view(2, 2), t(8, 12, 16), t(8, 12, 16), t(8, 16, 12), "silu"),
        4 * (3 * 2 * 16 * 12 + 5 * 12 + 2 * 16),
        2 * 64 + 16 + 16 + 3 * 3 * 12 * 16 * 2,
    ),
    # two columns in a byte, and a scale of 2 bytes for 16 of them; restoring is a product and a sum
    "dequantize": (
        ops.dequantize,
        (t(6, 16, dtype=U8), t(6, 2, dtype=F16), None, (1, 16), 32, "bfloat16"),
        2 * 6 * 32,
        6 * (16 + 2 * 2) + 2 * 6 * 32,
    ),
    "quantized_linear": (
        ops.quantized_linear,
        (t(5, 32), t(16, 16, dtype=U8), t(16, 2, dtype=F16), None, (1, 16), 32, "bfloat16", t(16)),
        2 * 16 * 32 + 2 * 5 * 16 * 32 + 80,
        2 * (160 + 16 + 80) + 16 * (16 + 2 * 2),
    ),
    "quantized_logits": (
        ops.quantized_logits,
        (t(3, 32), *int8(96, 32), (1, 32), 32, "bfloat16"),
        2 * 96 * 32 + 2 * 3 * 96 * 32,
        2 * 96 + 96 * (32 + 4) + 4 * 288,
    ),
    # ids, three rows with their scales, the same in fp32
    "quantized_embedding": (
        ops.quantized_embedding,
        (ints(1, 2, 3, dtype=I64), *int8(96, 32), (1, 32), 32, "bfloat16"),
        2 * 3 * 32,
        24 + 3 * (32 + 4) + 4 * 96,
    ),
    # as moe; each of the 3 experts is restored once
    "quantized_moe": (
        ops.quantized_moe,
        (
            t(2, 16),
            t(2, 2, dtype=F32),
            ints(0, 3, 3, 5).view(2, 2),
            *int8(8, 12, 16),
            *int8(8, 12, 16),
            *int8(8, 16, 12),
            (1, 16),
            (1, 16),
            (1, 12),
            16,
            12,
            "silu",
            "bfloat16",
        ),
        4 * (3 * 2 * 16 * 12 + 5 * 12 + 2 * 16) + 3 * 2 * 3 * 12 * 16,
        2 * 64 + 16 + 16 + 3 * (3 * 12 * 16 + 4 * (12 + 12 + 16)),
    ),
    # the largest, a quotient, rounding; two scales for each of 5 rows
    "quantize_rows": (ops.quantize_rows, (t(5, 32), "int8", 16), 3 * 160, 320 + 160 + 4 * 5 * 2),
    "quantize_with": (ops.quantize_with, (t(5, 32), t(1, 1, dtype=F32), "int8"), 2 * 160, 320 + 4 + 160),
    "scaled_linear": (
        ops.scaled_linear,
        (t(5, 32, dtype=I8), t(5, 1, dtype=F32), *int8(16, 32)[:2], 32, (1, 32), "bfloat16", t(16)),
        2 * 5 * 16 * 32 + 2 * 80 + 80,
        160 + 20 + 16 * (32 + 4) + 2 * 16 + 2 * 80,
    ),
    "all_reduce": (ops.all_reduce, (t(5, 32), TWO), 160, 640),
    "all_gather": (ops.all_gather, (t(5, 32), TWO), 0, 960),
    "send": (ops.send, (t(5, 32), TWO), 0, 320),
    "receive": (ops.receive, (ints(1, 2, 3), (32,), BF16, TWO), 0, 192),
}


@pytest.mark.parametrize(("op", "args", "flops", "nbytes"), COUNTED.values(), ids=COUNTED)
def test_a_cost_is_what_was_counted(
    op: OpDeclaration[..., Any], args: tuple[Any, ...], flops: int, nbytes: int
) -> None:
    assert op.cost is not None
    assert op.cost(*args) == Cost(flops, nbytes)


@pytest.mark.parametrize("window", [None, 1, 3, 7])
@pytest.mark.parametrize(
    "batch",
    [((1, 1),), ((9, 9),), ((5, 12), (1, 7)), ((3, 3), (0, 0), (1, 16)), ((4, 15), (2, 2), (6, 13))],
    ids=["one", "a prompt", "a chunk and a decode", "padding", "chunks"],
)
def test_attention_counts_the_pairs_and_keys_of_its_definition(
    batch: tuple[tuple[int, int], ...], window: int | None
) -> None:
    """A query at position p sees the positions j with p − window < j ≤ p; a key that some query sees is read once."""
    pairs = keys = blocks = 0
    for queries, length in batch:
        seen = [
            {j for j in range(length) if j <= p and (window is None or p - window < j)}
            for p in range(length - queries, length)
        ]
        together = set().union(*seen)
        pairs, keys = pairs + sum(map(len, seen)), keys + len(together)
        blocks += len({j // 4 for j in together})
    starts = tuple(sum(queries for queries, _ in batch[:n]) for n in range(len(batch) + 1))
    lengths = tuple(length for _, length in batch)
    tokens, ids = starts[-1], len(starts) + len(lengths) + blocks
    found = ops.paged_attention.cost
    assert found is not None
    # 4 heads: products of 8 and of 6 for each pair. Keys of 2 heads, q of 8 and results of 6 for 4 heads, in 2 bytes.
    assert found(*attention(starts, lengths, window)) == Cost(
        2 * pairs * 4 * (8 + 6), keys * 2 * (8 + 6) * 2 + tokens * 4 * (8 + 6) * 2 + ids * 4
    )


def test_every_op_of_the_core_says_its_cost() -> None:
    declared = [found for found in vars(ops).values() if isinstance(found, OpDeclaration)]
    assert {op.name for op in declared} == {op.name for op, *_ in COUNTED.values()}


def test_costs_add_up() -> None:
    assert Cost(1, 2) + Cost(3, 4) == Cost(4, 6)
