"""What the kernels of quantized weights allocate while they run, in bytes, and which calls they can run, from facts alone."""

from __future__ import annotations

import math

from bestiary.core.kernels.workspace import itemsize, packed_tiles
from bestiary.spec import Call

_WIDE = 4  # bytes of fp32
_RESTORED_ROWS = 512  # of a weight, at a time, on a processor
_STEPS = 5  # copies in fp32 on the way from codes to weights: codes, scales, zeros, and two products


def restored(rows: int, columns: int) -> int:
    """So many rows of a weight, on the way from their codes."""
    return _STEPS * _WIDE * rows * columns


def dequantize(call: Call) -> int:
    """All of the weight at once."""
    codes = call.arguments["codes"]
    return restored(math.prod(codes.shape[:-1]), call.arguments["columns"])


def quantized_linear(call: Call) -> int:
    """A part of the weight, and its share of the result; on a device all of it."""
    codes, block = call.arguments["codes"], call.arguments["block"]
    rows = codes.shape[0]
    if call.device == "cpu":
        rows = min(rows, max(_RESTORED_ROWS, block[0]))
    x = call.arguments["x"]
    wide = _WIDE * (math.prod(x.shape) + 3 * x.shape[0] * rows)
    return restored(rows, call.arguments["columns"] + 16) + wide + packed_tiles()


def quantized_embedding(call: Call) -> int:
    """The rows that are looked up."""
    return restored(call.arguments["ids"].shape[0], call.arguments["columns"] + 32)


def quantized_moe(call: Call) -> int:
    """One expert's weights, one after the other, and all tokens through it."""
    x, chosen = call.arguments["x"], call.arguments["experts"]
    tokens, hidden, features = x.shape[0], call.arguments["hidden"], call.arguments["features"]
    ordered = 6 * 8 * math.prod(chosen.shape)
    return ordered + restored(features, hidden) * 2 + _WIDE * tokens * (4 * features + 4 * hidden) + packed_tiles()


def quantize_rows(call: Call) -> int:
    """The rows in fp32: padded, their magnitudes, divided, rounded."""
    x, group = call.arguments["x"], call.arguments["group"]
    return 6 * _WIDE * x.shape[0] * -(-x.shape[-1] // group) * group


def quantize_with(call: Call) -> int:
    """The rows in fp32, divided and rounded."""
    return 4 * _WIDE * math.prod(call.arguments["x"].shape)


def scaled_linear(call: Call) -> int:
    """Both sides and the product in fp32."""
    x, weight = call.arguments["x"], call.arguments["weight"]
    sides = 3 * math.prod(x.shape) + 3 * math.prod(weight.shape)
    return _WIDE * (sides + 2 * x.shape[0] * weight.shape[0] + weight.shape[0])


def scaled_linear_int8(call: Call) -> int:
    """The sums of integers, and the same in fp32."""
    return 3 * _WIDE * call.arguments["x"].shape[0] * call.arguments["weight"].shape[0] + packed_tiles()


def whole_rows_int8(call: Call) -> str | None:
    """One scale for each row of either side; devices multiply integers in multiples of 8 only, and more than 16 rows."""
    x, weight = call.arguments["x"], call.arguments["weight"]
    if x.dtype != "int8" or itemsize(weight.dtype) != 1:
        return "it multiplies int8"
    if call.arguments["block"][1] < weight.shape[1] or call.arguments["group"] < weight.shape[1]:
        return "it takes one scale for each row"
    if call.arguments["block"][0] != 1:
        return "it takes a scale for each row of the weight"
    return None if call.device == "cpu" else "it runs on processors"
