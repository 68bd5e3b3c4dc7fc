"""What the kernels of a cache of few bits allocate while they run, in bytes, as in :mod:`bestiary.core.kernels.workspace`.

T packed tokens · N sequences · K key-value heads · D, E sizes.
"""

from __future__ import annotations

import math

from bestiary.core.kernels import invariant_workspace
from bestiary.core.kernels.workspace import attention_over, gathered_width, itemsize, turned
from bestiary.core.kv_format import SCALE_BYTES, BlockFormat
from bestiary.spec import Call

_WIDE = 4  # bytes of fp32
_HEAD = 48  # of a token's head: its scale, and what is asked of it
_TOKEN = 64  # of a token's places in the cache
_FIXED = 1024


def quantized_kv_write(call: Call) -> int:
    """Keys, or values, in fp32, divided by their scales, and codes; those of the keys are still there for the values."""
    k, v = call.arguments["k"], call.arguments["v"]
    copies = 1 if k.dtype == "float32" else 2
    numbers = max(math.prod(k.shape), math.prod(v.shape))
    return numbers * (copies * _WIDE + 3) + k.shape[0] * (k.shape[1] * _HEAD + _TOKEN) + _FIXED


def rope_quantized_kv_write(call: Call) -> int:
    """Queries and keys as one tensor, rotated, and rounded to their dtype; then as ``quantized_kv_write``."""
    q, k = call.arguments["q"], call.arguments["k"]
    elements = math.prod(q.shape) + math.prod(k.shape)
    return 2 * elements * itemsize(q.dtype) + turned(elements) + quantized_kv_write(call)


def quantized_paged_attention(call: Call) -> int:
    """As ``paged_attention``; keys, then values, as bytes and in fp32."""
    q, kv_heads, value_size = (call.arguments[name] for name in ("q", "kv_heads", "value_size"))
    size, wide = q.shape[2], gathered_width(call)
    page = kv_heads * (size + value_size) * wide + kv_heads * _between(call)
    if wide != _WIDE:
        page += kv_heads * max(size, value_size) * _WIDE
    return attention_over(call, page, call.arguments["block_size"], value_size)


def invariant(call: Call) -> int:
    """As ``paged_attention``'s; the bytes of a split, and its numbers before they are padded."""
    kv_heads, value_size = call.arguments["kv_heads"], call.arguments["value_size"]
    return invariant_workspace.attention_over(call, kv_heads, value_size)


def _between(call: Call) -> int:
    """Bytes of a token's head that are there while it is dequantized: gathered, and of int4 apart."""
    kind, size = call.arguments["kind"], max(call.arguments["q"].shape[2], call.arguments["value_size"])
    codes = BlockFormat(kind, 1, 1, size).code_bytes
    return codes + SCALE_BYTES + (2 * codes + size + 2 * _WIDE if kind == "int4" else 0)
