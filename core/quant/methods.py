"""The SDK's own methods: INT8 and INT4 weights, INT8 and FP8 weights with activations. N rows · K columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from bestiary.core.ops.quantized import dequantize, spread
from bestiary.core.ops.quantized_rows import KINDS, codes_of, quantize_rows, quantize_with, scaled_linear
from bestiary.core.quant.affine import Affine
from bestiary.core.quant.layout import Shape, Stored
from bestiary.core.quant.method import Method
from bestiary.core.quant.rounding import Grid

if TYPE_CHECKING:
    from bestiary.core.quant.inputs import Inputs


class Int8(Affine):
    """Weights in 8 bits, symmetric: a scale for each row, or for each ``group`` of its columns."""

    bound: ClassVar[float] = 0.01
    variants: ClassVar[tuple[str, ...]] = ("group=32",)
    group: int | None = Field(None, description="columns that share a scale: 32, 64 or 128; all of a row unless said")

    @property
    def grid(self) -> Grid:
        return Grid(8, self.group, "none", torch.float32 if self.group is None else torch.float16)


class Int4(Affine):
    """Weights in 4 bits: a scale for each ``group`` of a row's columns, and a zero point or a minimum if asked for."""

    bound: ClassVar[float] = 0.12
    variants: ClassVar[tuple[str, ...]] = ("zeros=integer", "zeros=minimum", "group=32:clip=true")
    group: int = Field(64, description="columns that share a scale: 32, 64 or 128")
    zeros: Literal["none", "integer", "minimum"] = Field(
        "none", description="none: symmetric; integer: a zero point in 4 bits; minimum: an offset in the scale's dtype"
    )

    @property
    def grid(self) -> Grid:
        return Grid(4, self.group, self.zeros, torch.float16)


class _Activations(Method):
    """Weights and activations in 8 bits: products take codes of both. Weights with experts are restored as they are read."""

    kind: ClassVar[str]
    activations: Literal["dynamic", "static"] = Field(
        "dynamic", description="dynamic: each token's scale from its values; static: one scale for all, calibrated"
    )

    @property
    def wants(self) -> frozenset[str]:
        return frozenset(("inputs",)) if self.activations == "static" else frozenset()

    def block(self, shape: Shape) -> tuple[int, int]:
        """Rows and columns that share a scale."""
        return (1, shape[-1])

    def layout(self, shape: Shape) -> Mapping[str, Stored]:
        rows, columns = self.block(shape)
        whole = (None if rows >= shape[-2] > 1 else rows, None if columns >= shape[-1] else columns)
        codes = Stored(str(KINDS[self.kind][1]).removeprefix("torch."))
        stored = {"codes": codes, "scale": Stored("float32", whole)}
        static = self.activations == "static" and len(shape) == 2
        return {**stored, "input_scale": Stored("float32", (None, None))} if static else stored

    def quantize(self, weight: Tensor, inputs: Sequence[Inputs] = ()) -> dict[str, Tensor]:
        largest, dtype = KINDS[self.kind]
        rows, columns = self.block(tuple(weight.shape))
        height, width = weight.shape[-2:]
        padded = torch.nn.functional.pad(weight, (0, -width % columns, 0, -height % rows))
        blocks = padded.reshape(*weight.shape[:-2], -(-height // rows), rows, -(-width // columns), columns)
        scale = blocks.abs().amax((-3, -1)) / largest
        divisor = spread(torch.where(scale > 0, scale, 1.0), (rows, columns), height, width)
        stored = {"codes": codes_of(weight, divisor, dtype), "scale": scale}
        if "input_scale" in self.layout(tuple(weight.shape)):
            seen = inputs[0].largest.max() if inputs else weight.new_tensor(largest)  # nothing multiplies an embedding
            stored["input_scale"] = (seen / largest).clamp(min=1e-12).float().reshape(1, 1)
        return stored

    def weight(self, stored: Mapping[str, Tensor], shape: Shape, dtype: str) -> Tensor:
        return dequantize(stored["codes"], stored["scale"], None, self.block(shape), shape[-1], dtype)

    def linear(self, x: Tensor, stored: Mapping[str, Tensor], shape: Shape, bias: Tensor | None, dtype: str) -> Tensor:
        known, block = stored.get("input_scale"), self.block(shape)
        group = min(block[1], shape[-1])
        if known is None:
            rows, row_scale = quantize_rows(x, self.kind, group)
        else:
            rows, row_scale, group = quantize_with(x, known, self.kind), known, shape[-1]
        return scaled_linear(rows, row_scale, stored["codes"], stored["scale"], group, block, dtype, bias)


class W8A8(_Activations):
    """Weights and activations in INT8: a scale for each row and for each token (or one for all tokens, calibrated)."""

    bound: ClassVar[float] = 0.015
    kind: ClassVar[str] = "int8"
    smooth: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="SmoothQuant's migration strength, calibrated; 0 leaves activations as they are",
    )

    @property
    def wants(self) -> frozenset[str]:
        return super().wants | (frozenset(("inputs",)) if self.smooth else frozenset())

    def scales(self, weights: Sequence[Tensor], inputs: Inputs) -> Tensor | None:
        from bestiary.core.quant.smooth import smooth_scales

        return smooth_scales(weights, inputs.largest, self.smooth) if self.smooth else None


class FP8(_Activations):
    """Weights and activations in FP8 E4M3. On processors weights only, restored once when an engine is loaded."""

    bound: ClassVar[float] = 0.04
    variants: ClassVar[tuple[str, ...]] = ("weights=tensor", "weights=block")
    kind: ClassVar[str] = "fp8"
    weights: Literal["row", "tensor", "block"] = Field(
        "row",
        description="what shares a scale: a row, the whole weight, or a block of 128 × 128 (and 128 columns of a token)",
    )

    def block(self, shape: Shape) -> tuple[int, int]:
        return {"row": (1, shape[-1]), "tensor": (shape[-2], shape[-1]), "block": (128, 128)}[self.weights]

    def storage_only(self, device: str) -> bool:
        return device == "cpu"
