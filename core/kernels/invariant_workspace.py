"""What the batch-invariant kernels allocate while they run, in bytes, as in :mod:`bestiary.core.kernels.workspace`.

T packed tokens · N sequences · H, K heads · D, E sizes · Q rows of a tile · W tiles.
"""

from __future__ import annotations

import math

from bestiary.core.kernels import moe_workspace
from bestiary.core.kernels.workspace import itemsize, packed_tiles
from bestiary.spec import Call, TensorFacts

_WIDE = 4  # bytes of fp32
_SPLIT = 128  # positions of a split of keys
_PART = 2048  # rows of a weight that are converted at a time


def linear(call: Call) -> int:
    """A tile of the input and one of the result, and the weight where it has to be padded."""
    x: TensorFacts = call.arguments["x"]
    library = packed_tiles() if call.device == "cpu" and x.dtype != "float32" else 0
    return library + _product(call, itemsize(x.dtype), call.arguments["weight"].shape[0])


def logits(call: Call) -> int:
    """In fp32, a part of the weight at a time; the part before is still there while the next one is made."""
    x: TensorFacts = call.arguments["x"]
    part = min(_PART, call.arguments["weight"].shape[0])
    converted = 0 if x.dtype == "float32" else 2 * part * x.shape[-1] * _WIDE
    return converted + _product(call, _WIDE, part)


def linear_widened(call: Call) -> int:
    """As ``logits``, and a part of the bias."""
    return logits(call) + _WIDE * min(_PART, call.arguments["weight"].shape[0])


def norm(call: Call) -> int:
    """The input in fp32, its squares and the result before it is narrowed; a tile, and a few numbers a row."""
    x: TensorFacts = call.arguments["x"]
    copies = 2 if x.dtype == "float32" else 3
    tile = _tile(call.device)
    around = (tile + 2) * _padded(x.shape[-1]) + tile + 4 * math.prod(x.shape[:-1])
    return _WIDE * (copies * math.prod(x.shape) + around)


def rotary_table(call: Call) -> int:
    """Angles, cosines, sines and both together, beside each token's own frequencies; a few rows of those in fp64."""
    half = call.arguments["size"] // 2
    tokens = call.arguments["positions"].shape[0]
    return _WIDE * (tokens * (6 * half + 8) + 16 * half)


def gated_activation(call: Call) -> int:
    """The gate in fp32, what its activation divides by, and the result."""
    gate: TensorFacts = call.arguments["gate"]
    copies = 2 if gate.dtype == "float32" else 3
    return copies * _WIDE * math.prod(gate.shape)


def sigmoid_gate(call: Call) -> int:
    """The input and the product in fp32, the gate in fp32 and its sigmoid."""
    x: TensorFacts = call.arguments["x"]
    copies = 1 if x.dtype == "float32" else 2
    return _WIDE * (copies * math.prod(x.shape) + 3 * math.prod(call.arguments["gate"].shape))


def moe_route(call: Call) -> int:
    """As the ordinary one, and the sums of a row's exponentials."""
    tokens, experts = call.arguments["logits"].shape
    return moe_workspace.moe_route(call) + _WIDE * (
        tokens * (experts + 4) + (_tile(call.device) + 2) * _padded(experts)
    )


def paged_attention(call: Call) -> int:
    """See :func:`attention_over`."""
    kv_heads, value_size = call.arguments["v_cache"].shape[2:]
    return attention_over(call, kv_heads, value_size)


def attention_over(call: Call, kv_heads: int, value_size: int) -> int:
    """Queries and sums of all tiles, and twice or thrice the scores of a split, since the last one's still exist."""
    q, tables = call.arguments["q"], call.arguments["block_tables"]
    tokens, heads, size = q.shape
    sequences, tile = tables.shape[0], _tile(call.device)
    keys, values = _padded(size), _padded(value_size + 1)
    tiles = min(tokens, -(-tokens // tile) + sequences)
    rows = tiles * tile * heads
    each = keys + values + 8 + max(3 * _SPLIT + values, 2 * _SPLIT + 4 * values)
    seen = tiles * tile * _SPLIT * (10 + 2 * heads // kv_heads)
    entries = sequences * kv_heads * _SPLIT * (2 * keys + 2 * values + 2 * max(keys, values))
    return (rows * each + entries) * _WIDE + seen


def _product(call: Call, width: int, count: int) -> int:
    features, rows = call.arguments["x"].shape[-1], _tile(call.device)
    padded = features % 16 or count < 16
    weight = max(16, count) * _padded(features) * width if padded else 0
    results = 1 if call.arguments.get("bias") is None else 2
    return weight + rows * (_padded(features) + results * max(16, count)) * width


def _tile(device: str) -> int:
    return 8 if device == "cpu" else 64


def _padded(size: int) -> int:
    return -(-size // 16) * 16
