"""Quantization methods for tests: some within their bounds, some wrong in one way each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from bestiary import ConfigError, hookimpl
from bestiary.ops import dequantize
from bestiary.quant import Method, Stored
from bestiary.spec import Quantization


class Plain(Method):
    """Codes are the weights themselves: nothing changes."""

    bound: ClassVar[Any] = 0.5

    def layout(self, shape: tuple[int, ...]) -> Mapping[str, Stored]:
        return {"codes": Stored("float32"), "scale": Stored("float32", (1, None))}

    def quantize(self, weight: Tensor, inputs: Sequence[object] = ()) -> dict[str, Tensor]:
        return {"codes": self.codes(weight), "scale": torch.ones_like(weight[..., :1])}

    def codes(self, weight: Tensor) -> Tensor:
        return weight.clone()

    def weight(self, stored: Mapping[str, Tensor], shape: tuple[int, ...], dtype: str) -> Tensor:
        return dequantize(stored["codes"], stored["scale"], None, (1, shape[-1]), shape[-1], dtype)


class Generous(Plain):
    """Three significant bits behind the point."""

    def codes(self, weight: Tensor) -> Tensor:
        return (weight * 16).round() / 16


class Strict(Generous):
    bound = 1e-4


class Twofold(Plain):
    """Bits behind the point, of which one is too few."""

    bound = 0.05
    variants = ("bits=1",)
    bits: int = 7

    def codes(self, weight: Tensor) -> Tensor:
        return (weight * 2**self.bits).round() / 2**self.bits


class Boundless(Generous):
    bound = None


class Negative(Generous):
    bound = -1.0


class Refusing(Generous):
    def layout(self, shape: tuple[int, ...]) -> Mapping[str, Stored]:
        raise ConfigError(
            "E-BUILD-QUANTIZATION", "a weight", "does not divide", found=f"{shape[0]} rows", expected="a multiple of 64"
        )


class Divided(Generous):
    """Stores no weight whose columns its groups don't divide."""

    group: int = 8

    def layout(self, shape: tuple[int, ...]) -> Mapping[str, Stored]:
        if shape[-1] % self.group:
            raise ValueError(f"{shape[-1]} columns are no multiple of {self.group}")
        return super().layout(shape)


class Apart(Divided):
    """The same, of which no product is merged with another."""

    def stacks(self, rows: int) -> bool:
        return False


class Silent(Generous):
    def layout(self, shape: tuple[int, ...]) -> Mapping[str, Stored]:
        raise ConfigError("E-BUILD-QUANTIZATION", "a weight", "is not to my liking")


class Careful(Generous):
    """Wants a calibration."""

    @property
    def wants(self) -> frozenset[str]:
        return frozenset(("inputs",))


class Torch(Generous):
    """Does more than to call ops."""

    def weight(self, stored: Mapping[str, Tensor], shape: tuple[int, ...], dtype: str) -> Tensor:
        return super().weight(stored, shape, dtype) * 2


class Nothing(Generous):
    """Calls no op at all."""

    def weight(self, stored: Mapping[str, Tensor], shape: tuple[int, ...], dtype: str) -> Tensor:
        return stored["codes"]


METHODS = (
    Plain,
    Generous,
    Strict,
    Twofold,
    Boundless,
    Negative,
    Refusing,
    Divided,
    Apart,
    Silent,
    Careful,
    Torch,
    Nothing,
)


@hookimpl
def bestiary_register_quantizations(register: Callable[[Quantization], None]) -> None:
    for method in METHODS:
        register(Quantization(name=method.__name__.lower(), method=f"{__name__}:{method.__name__}"))
    register(Quantization(name="number", method=f"{__name__}:METHODS"))
