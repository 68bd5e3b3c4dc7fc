"""Blocks of a GGUF that INT4 and INT8 store as they are: 32 columns of a row with a scale, and of Q4_1 with a minimum."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from torch import Tensor

COLUMNS: Final = 32
#: By block format, the method whose layout holds it, as a manifest records it.
METHODS: Final[dict[str, dict[str, Any]]] = {
    "Q4_0": {"method": "int4", "group": COLUMNS, "zeros": "none"},
    "Q4_1": {"method": "int4", "group": COLUMNS, "zeros": "minimum"},
    "Q8_0": {"method": "int8", "group": COLUMNS},
}


def stored(data: Tensor, kind: str) -> dict[str, Tensor]:
    """The tensors that the method of a block format stores, of a weight's blocks.

    A block is its scale in fp16, its minimum in fp16 (Q4_1), and its codes: 32 of 8 bits, or 16 bytes, of which byte i
    holds column i in its low half and column 16 + i in the high one.

    Args:
        data: ``[…, G, bytes of a block]`` uint8, G blocks in a row.

    Returns:
        ``codes`` ``[…, 32 · G]`` int8 or ``[…, 16 · G]`` uint8; ``scale``, ``zero`` ``[…, G]`` fp16.
    """
    import torch

    from bestiary.core.quant.affine import pack

    def half(at: int) -> Tensor:
        return data[..., at : at + 2].contiguous().view(torch.float16).squeeze(-1)

    if kind == "Q8_0":
        return {"codes": data[..., 2:].contiguous().view(torch.int8).flatten(-2), "scale": half(0)}
    codes = data[..., -COLUMNS // 2 :]
    found = {"codes": pack(torch.cat((codes & 15, codes >> 4), -1).flatten(-2)), "scale": half(0)}
    return found if kind == "Q4_0" else {**found, "zero": half(2)}
