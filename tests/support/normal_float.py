"""A quantization method of a plugin's own, whole: four bits that stand for the quantiles of a normal distribution (QLoRA,
arXiv 2305.14314), restored by an op that no one else has.

N rows · K columns of a weight ``[…, N, K]``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from bestiary import Op, hookimpl
from bestiary.ops import ROUNDING, integers, normal, op
from bestiary.quant import Method, Stored
from bestiary.spec import Quantization

#: Values of the codes, of numbers whose largest magnitude is 1.
LEVELS = torch.distributions.Normal(0.0, 1.0).icdf(torch.linspace(0.04, 0.96, 16)).div(1.7507)


@hookimpl
def bestiary_register_quantizations(register: Callable[[Quantization], None]) -> None:
    register(Quantization(name="normal-float", method="normal_float:NormalFloat"))


@hookimpl
def bestiary_register_ops(register: Callable[[Op], None]) -> None:
    register(Op(name="normal_float::restore", declaration="normal_float:restore"))


def _inputs(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    for rows, columns in ((3, 16), (5, 31)):
        scale = normal(generator, rows, -(-columns // 8), dtype=torch.float32).abs()
        yield integers(generator, 16, rows, columns).byte(), scale, 8, str(dtype).removeprefix("torch.")


def _restored(codes: Tensor, scale: Tensor, group: int, dtype: str) -> Tensor:
    return scale.new_empty(codes.shape, dtype=getattr(torch, dtype))


@op(inputs=_inputs, tolerances=ROUNDING, fake=_restored, name="normal_float::restore", constants=("codes", "scale"))
def restore(codes: Tensor, scale: Tensor, group: int, dtype: str) -> Tensor:
    """``LEVELS[code] · scale``: codes ``[…, N, K]`` uint8, scale ``[…, N, ⌈K/group⌉]`` fp32 → ``[…, N, K]`` in ``dtype``."""
    wide = scale.repeat_interleave(group, -1)[..., : codes.shape[-1]]
    return (LEVELS.to(codes.device)[codes.long()] * wide).to(getattr(torch, dtype))


class NormalFloat(Method):
    """Weights in four bits (a byte each here), with a scale for each ``group`` of columns."""

    bound: ClassVar[float] = 0.12
    group: int = Field(8, gt=0, description="columns that share a scale")

    def layout(self, shape: tuple[int, ...]) -> Mapping[str, Stored]:
        return {"codes": Stored("uint8"), "scale": Stored("float32", (1, self.group))}

    def quantize(self, weight: Tensor, inputs: Sequence[object] = ()) -> dict[str, Tensor]:
        columns = weight.shape[-1]
        padded = torch.nn.functional.pad(weight, (0, -columns % self.group)).unflatten(-1, (-1, self.group))
        scale = padded.abs().amax(-1)
        values = padded / scale.clamp(min=1e-12).unsqueeze(-1)
        borders = (LEVELS[1:] + LEVELS[:-1]).to(weight.device) / 2
        codes = torch.bucketize(values, borders).flatten(-2)[..., :columns]
        return {"codes": codes.byte(), "scale": scale}

    def weight(self, stored: Mapping[str, Tensor], shape: tuple[int, ...], dtype: str) -> Tensor:
        return restore(stored["codes"], stored["scale"], self.group, dtype)
