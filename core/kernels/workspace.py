"""What the SDK's kernels allocate while they run, in bytes, from facts alone. No torch: plugins are asked while being listed.

T packed tokens · N sequences · L tokens of a sequence · H, K heads · D, E sizes. Each is an upper bound for torch's functions
on a processor, checked against torch's own profile of allocations; on a GPU it is an estimate.
"""

from __future__ import annotations

import math
import os

from bestiary.spec import Call, TensorFacts

_WIDENED_ROWS = 2048  # rows of a weight that ``linear_widened`` converts at a time
_WIDE = 4  # bytes of fp32, in which most kernels compute
_TILES = 192 * 2**10  # a thread of a 16-bit product
_FLASH_SCRATCH = 640 * 2**10  # a thread of torch's attention: 256 queries × 512 keys in fp32, and their sums


#: Bytes of keys, or of values, that decodes gather at a time on a device; hiding and laying out copies them.
GATHERED = 2**27


def itemsize(dtype: str) -> int:
    """Bytes of an element: ``float32`` → 4, ``float8_e4m3fn`` → 1."""
    digits = dtype.split("_", 1)[0].lstrip("abcdefghijklmnopqrstuvwxyz")
    return max(1, int(digits or 8) // 8)


def nothing(call: Call) -> int:
    """It writes to ``out`` and allocates nothing."""
    return 0


def elementwise(call: Call) -> int:
    """None, but for terms of two dtypes, of which one is widened."""
    x, y = call.arguments["x"], call.arguments["y"]
    return 0 if x.dtype == y.dtype else max(itemsize(x.dtype), itemsize(y.dtype)) * math.prod(x.shape)


def linear(call: Call) -> int:
    """None, but for 16-bit products on a processor, whose library packs tiles of both sides."""
    return packed_tiles() if call.device == "cpu" and call.arguments["x"].dtype != "float32" else 0


def norm(call: Call) -> int:
    """``rms_norm``, ``add_rms_norm``: the input in fp32, its squares, the result before it is rounded, and a number a row."""
    x, weight = call.arguments["x"], call.arguments["weight"]
    copies = 1 + (x.dtype != "float32") + (weight.dtype != "float32")
    return copies * _WIDE * math.prod(x.shape) + 4 * _WIDE * math.prod(x.shape[:-1])


def embedding(call: Call) -> int:
    """The rows in the weight's own dtype, if that is not fp32."""
    ids, weight = call.arguments["ids"], call.arguments["weight"]
    return 0 if weight.dtype == "float32" else ids.shape[0] * weight.shape[1] * itemsize(weight.dtype)


def gated_activation(call: Call) -> int:
    """The gate in fp32 and the activation's result."""
    gate: TensorFacts = call.arguments["gate"]
    return 2 * _WIDE * math.prod(gate.shape)


def sigmoid_gate(call: Call) -> int:
    """The input and the product in fp32, the gate in fp32 and its sigmoid."""
    x: TensorFacts = call.arguments["x"]
    copies = 1 if x.dtype == "float32" else 2
    return _WIDE * (copies * math.prod(x.shape) + 2 * math.prod(call.arguments["gate"].shape))


def linear_widened(call: Call) -> int:
    """The input and a slice of the weight in fp32, and the products of this slice and the last."""
    x: TensorFacts = call.arguments["x"]
    rows = min(_WIDENED_ROWS, call.arguments["weight"].shape[0])
    products = 2 if call.arguments.get("bias") is None else 3
    return _WIDE * (math.prod(x.shape) + rows * x.shape[-1] + products * x.shape[0] * rows + rows)


def logits(call: Call) -> int:
    """None in fp32, else as ``linear_widened``."""
    return 0 if call.arguments["x"].dtype == "float32" else linear_widened(call)


def packed_tiles() -> int:
    """What a processor's library packs of both sides of a 16-bit product."""
    return _TILES * (os.cpu_count() or 1)


def rope(call: Call) -> int:
    """The input in fp32, its two rotated halves and their concatenation."""
    return turned(math.prod(call.arguments["x"].shape))


def kv_write(call: Call) -> int:
    """Keys, then values, in the cache's dtype."""
    k, v, cache = (call.arguments[name] for name in ("k", "v", "k_cache"))
    return max(math.prod(k.shape), math.prod(v.shape)) * itemsize(cache.dtype) * 2


def rope_kv_write(call: Call) -> int:
    """Queries and keys as one tensor, rotated; what ``kv_write`` takes comes after the rotation's own is gone."""
    q, k = call.arguments["q"], call.arguments["k"]
    elements = math.prod(q.shape) + math.prod(k.shape)
    return elements * itemsize(q.dtype) + turned(elements) + kv_write(call)


def turned(elements: int) -> int:
    """A rotation of so many numbers."""
    return 4 * _WIDE * elements


def paged_attention(call: Call) -> int:
    """The pages of all decoding sequences side by side, or of one prompt with its mask, at the longest that tables allow.

    On a processor queries, keys and values are widened to fp32. Elsewhere torch's attention with a mask and grouped
    heads repeats the keys and values for every head, and computes in fp32.
    """
    q, k_cache, v_cache = (call.arguments[n] for n in ("q", "k_cache", "v_cache"))
    _, block_size, kv_heads, value_size = v_cache.shape
    size, wide = q.shape[2], gathered_width(call)
    # A gathered page is converted before the next one is gathered.
    page = kv_heads * (size + value_size) * wide
    if k_cache.dtype != q.dtype or wide != itemsize(q.dtype):
        page += kv_heads * max(size, value_size) * itemsize(k_cache.dtype)
    return attention_over(call, page, block_size, value_size)


def gathered_width(call: Call) -> int:
    """Bytes of a number in what attention gathers."""
    return _WIDE if call.device == "cpu" else itemsize(call.arguments["q"].dtype)


def attention_over(call: Call, page: int, block_size: int, value_size: int) -> int:
    """What torch's attention takes where a token's gathered keys and values take ``page`` bytes."""
    q, tables = call.arguments["q"], call.arguments["block_tables"]
    tokens, heads, size = q.shape
    length, sequences, window = tables.shape[1] * block_size, tables.shape[0], call.arguments["window"]
    on_host, wide = call.device == "cpu", gathered_width(call)
    if not on_host:
        page += heads * ((size + value_size) * (wide + _WIDE) + 2 * _WIDE)
    # Where the host does not know the lengths, a decode gathers whole tables.
    columns = tables.shape[1] if window is None or not on_host else (window + block_size - 2) // block_size + 1
    seen = min(length, columns * block_size)
    decode = sequences * seen * (page + 32) + sequences * heads * (size + value_size) * wide
    if not on_host:
        decode = min(decode, 8 * GATHERED)
    behind = length if window is None else min(length, window + tokens)
    prompt = behind * page + 14 * min(tokens, length) * behind
    scratch = _FLASH_SCRATCH * (os.cpu_count() or 1) if on_host else 0
    widened = tokens * heads * size * wide if on_host and q.dtype != "float32" else 0
    return widened + tokens * heads * value_size * wide + max(decode, prompt) + scratch
