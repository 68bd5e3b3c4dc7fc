"""What the kernels of mixtures of experts allocate while they run, in bytes, and which calls they can run, from facts alone.

T packed tokens · H hidden · E experts · k chosen of them · F features of one. The worst case is that all tokens choose the
same k experts.
"""

from __future__ import annotations

from bestiary.core.kernels.workspace import itemsize, packed_tiles
from bestiary.spec import Call

_WIDE = 4  # bytes of fp32
_INDEX = 8  # bytes of int64
_PART = 2048  # rows of a weight that are widened at a time
_GROUPS = 1 << 17  # of the library, for grouped products of any size
_ARCHITECTURES = ("sm_90", "sm_100")


def moe_route(call: Call) -> int:
    """The logits in fp32 and ordered, their indices, and the scores."""
    tokens, experts = call.arguments["logits"].shape
    return tokens * (experts * (2 * _WIDE + 2 * _INDEX) + 6 * _WIDE * call.arguments["top_k"])


def moe(call: Call) -> int:
    """One expert over all tokens, beside the order of the choices and the sum."""
    x = call.arguments["x"]
    width = itemsize(x.dtype)
    library = packed_tiles() if call.device == "cpu" and x.dtype != "float32" else 0
    return library + _ordered(call) + _one_expert(call, width)


def moe_widened(call: Call) -> int:
    """As ``moe`` with products in fp32, a part of a weight at a time."""
    tokens, hidden, features, _ = _sizes(call)
    parts = (_PART + tokens) * max(hidden, features) + 3 * _PART * tokens
    return _ordered(call) + _one_expert(call, _WIDE) + _WIDE * parts


def invariant(call: Call) -> int:
    """As ``moe``, with tiles of every product and weights that are padded."""
    return moe(call) + _tiles(call, itemsize(call.arguments["x"].dtype))


def invariant_widened(call: Call) -> int:
    """As ``moe_widened``, with tiles of every product; the part before is still there while the next one is made."""
    _, hidden, features, _ = _sizes(call)
    return moe_widened(call) + _tiles(call, _WIDE) + _WIDE * _PART * (max(hidden, features) + 16)


def moe_dense(call: Call) -> int:
    """One expert over all tokens and the sum."""
    tokens, hidden, _, chosen = _sizes(call)
    return _one_expert(call, itemsize(call.arguments["x"].dtype)) + tokens * (hidden + 4 * chosen + 4) * _WIDE


def moe_grouped(call: Call) -> int:
    """The rows of all choices: the input, the products, the activation and the results in fp32."""
    tokens, hidden, features, chosen = _sizes(call)
    width = itemsize(call.arguments["x"].dtype)
    rows = (2 * hidden + 3 * features) * width + (features + 2 * hidden) * _WIDE
    return _GROUPS + tokens * chosen * rows + _ordered(call)


def on_processor(call: Call) -> str | None:
    """``Kernel.supports`` of those that wait to know how many tokens each expert has."""
    return None if call.device == "cpu" else "it waits for the host to count each expert's tokens"


def sixteen_bit_on_processor(call: Call) -> str | None:
    """``Kernel.supports`` of the widened ones."""
    if call.device != "cpu":
        return "it is for processors"
    return None if call.arguments["x"].dtype in ("bfloat16", "float16") else "it is for 16-bit weights"


def grouped(call: Call) -> str | None:
    """``Kernel.supports`` of grouped products, which torch has for some architectures; elsewhere it loops on the host."""
    if not call.features.intersection(_ARCHITECTURES):
        return f"torch has grouped products on {' and '.join(_ARCHITECTURES)}"
    if call.arguments["x"].dtype != "bfloat16":
        return "torch's grouped products are for bfloat16"
    _, hidden, features, _ = _sizes(call)
    return f"{hidden} or {features} features are no multiple of 8" if hidden % 8 or features % 8 else None


def dense(call: Call) -> str | None:
    """``Kernel.supports`` of every expert over all tokens, which more than a few tokens make slow."""
    if call.device == "cpu":
        return "it is for devices that should not wait for the host"
    return "grouped products are faster" if call.arguments["x"].shape[0] > 64 and grouped(call) is None else None


def _sizes(call: Call) -> tuple[int, int, int, int]:
    """T, H, F and k; F of the unpacked weights."""
    tokens, hidden = call.arguments["x"].shape
    return tokens, hidden, call.arguments["down"].shape[2], call.arguments["experts"].shape[1]


def _ordered(call: Call) -> int:
    """The choices by expert, with the indices that ordering takes, and the sum over them."""
    tokens, hidden, _, chosen = _sizes(call)
    return tokens * chosen * (5 * _INDEX + 2 * _WIDE) + tokens * hidden * _WIDE + 64 * call.arguments["down"].shape[0]


def _one_expert(call: Call, width: int) -> int:
    """Its rows, gate and up, the activation in fp32 and rounded, its result and that in fp32."""
    tokens, hidden, features, _ = _sizes(call)
    stored = itemsize(call.arguments["x"].dtype)
    first = hidden * stored + features * (2 * width + 2 * _WIDE + stored)
    last = (hidden + features) * stored + features * (2 * width + _WIDE) + hidden * (width + 2 * _WIDE)
    return tokens * max(first, last)


def _tiles(call: Call, width: int) -> int:
    _, hidden, features, _ = _sizes(call)
    rows = 8 if call.device == "cpu" else 64
    larger = max(hidden, features) + 16
    return width * (3 * rows * larger + (larger * larger if hidden % 16 or features % 16 else 0))
