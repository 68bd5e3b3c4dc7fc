"""Weights on a grid of few bits: the layout of INT8 and INT4, and the quantizers that choose the codes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from bestiary.core.ops.quantized import dequantize
from bestiary.core.quant import awq, gptq
from bestiary.core.quant.layout import Piece, Shape, Stored, sliced
from bestiary.core.quant.method import Method
from bestiary.core.quant.rounding import Codes, Grid, clipped, round_to_nearest

if TYPE_CHECKING:
    from typing import Self

    from bestiary.core.quant.inputs import Inputs

GROUPS: Final = (32, 64, 128)


class Affine(Method):
    """``w = scale · code``, with or without a zero: groups of a row's columns share scale and zero."""

    quantizer: Literal["nearest", "awq", "gptq"] = Field(
        "nearest",
        description="nearest: round; awq: scale channels by what activations need, then round; gptq: let later columns make up for what rounding does",
    )
    clip: bool = Field(False, description="shrink each group's range to where its error is least (always with awq)")
    order: bool = Field(False, description="gptq: the columns with the largest inputs first (act-order)")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.grid.group is not None and self.grid.group not in GROUPS:
            raise ValueError(f"group must be one of {', '.join(map(str, GROUPS))}, got {self.grid.group}")
        if self.order and self.quantizer != "gptq":
            raise ValueError("order is for quantizer=gptq")
        if self.clip and self.quantizer != "nearest":
            raise ValueError("clip is for quantizer=nearest; awq always clips, gptq never")
        return self

    @property
    def grid(self) -> Grid:
        """Bits, group, zeros."""
        raise NotImplementedError

    @property
    def wants(self) -> frozenset[str]:
        return frozenset({"nearest": (), "awq": ("inputs",), "gptq": ("inputs", "hessian")}[self.quantizer])

    def layout(self, shape: Shape) -> Mapping[str, Stored]:
        grid = self.grid
        block = (1, grid.group)
        scales = Stored(_name(grid.dtype), block)
        codes = Stored("int8") if grid.bits == 8 else Stored("uint8", (1, 2))
        if grid.zeros == "none":
            return {"codes": codes, "scale": scales}
        zero = Stored("uint8", block) if grid.zeros == "integer" else scales
        return {"codes": codes, "scale": scales, "zero": zero}

    def quantize(self, weight: Tensor, inputs: Sequence[Inputs] = ()) -> dict[str, Tensor]:
        if weight.ndim > 2:
            each: list[tuple[Inputs, ...]] = [(seen,) for seen in inputs] or [()] * len(weight)
            parts = [self.quantize(one, seen) for one, seen in zip(weight, each, strict=True)]
            return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
        codes = self._codes(weight, inputs[0] if inputs else None)
        packed = codes.codes
        if self.grid.bits == 4:
            packed = pack(packed + 8 if codes.zero is None else packed)
        stored = {"codes": packed, "scale": codes.scale}
        return stored if codes.zero is None else {**stored, "zero": codes.zero}

    def _codes(self, weight: Tensor, inputs: Inputs | None) -> Codes:
        if self.quantizer == "nearest":
            return clipped(weight, self.grid) if self.clip else round_to_nearest(weight, self.grid)
        if inputs is None or not inputs.rows:  # an embedding, or an expert that no token of the text chose
            return round_to_nearest(weight, self.grid)
        if self.quantizer == "awq":
            return awq.clip(weight, inputs.sample.to(weight.device), self.grid)
        assert inputs.hessian is not None
        return gptq.gptq(weight, gptq.factorize(inputs.hessian.to(weight.device), order=self.order), self.grid)

    def scales(self, weights: Sequence[Tensor], inputs: Inputs) -> Tensor | None:
        if self.quantizer != "awq" or not inputs.rows:
            return None
        readers = [awq.Reader(weight, inputs.sample.to(weight.device)) for weight in weights]
        return awq.search_scales(readers, inputs.mean.to(weights[0].device), self.grid)

    def weight(self, stored: Mapping[str, Tensor], shape: Shape, dtype: str) -> Tensor:
        block = (1, self.grid.width(shape[-1]))
        return dequantize(stored["codes"], stored["scale"], stored.get("zero"), block, shape[-1], dtype)

    def cut(self, shape: Shape, axis: int, start: int, stop: int, subject: str) -> tuple[Method, dict[str, Piece]]:
        """A slice that cuts a group in two makes smaller groups of the same scales."""
        group = self.grid.group
        if axis != len(shape) - 1 or group is None:
            return super().cut(shape, axis, start, stop, subject)
        finer = math.gcd(group, start)
        if stop != shape[axis]:
            finer = math.gcd(finer, stop)
        layout = self.layout(shape)
        pieces = {"codes": sliced(layout["codes"], shape, axis, start, stop, subject)}
        for name in layout.keys() - {"codes"}:
            pieces[name] = Piece(axis, start // finer, -(-stop // finer), group // finer)
        method = self if finer == group else self.model_copy(update={"group": finer})
        return method, {name: piece for name, piece in pieces.items() if piece is not None}


def pack(codes: Tensor) -> Tensor:
    """Codes of 0 … 15 ``[N, K]`` → two columns a byte ``[N, ⌈K/2⌉]`` uint8, the even one low."""
    whole = torch.nn.functional.pad(codes.to(torch.uint8), (0, codes.shape[-1] % 2))
    return whole[..., 0::2] | (whole[..., 1::2] << 4)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
