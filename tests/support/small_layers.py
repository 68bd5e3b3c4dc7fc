"""Small linear layers with inputs like a model's: correlated, and some channels much larger than others."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class SmallLayer(NamedTuple):
    """weight [N, K] and rows [R, K] that it reads."""

    weight: Tensor
    x: Tensor

    @property
    def hessian(self) -> Tensor:
        wide = self.x.double()
        return wide.t() @ wide / len(wide)

    def error(self, rounded: Tensor, scale: Tensor | float = 1.0) -> float:
        """Squared error of the outputs when the weight is ``rounded`` and the inputs are divided by ``scale``."""
        made = (self.x / scale).double() @ rounded.double().t()
        return float((made - self.x.double() @ self.weight.double().t()).square().sum())


def small_layer(outputs: int = 24, inputs: int = 96, rows: int = 400, seed: int = 0) -> SmallLayer:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(inputs // 2 + 1, inputs, generator=generator)
    size = torch.exp(0.8 * torch.randn(inputs, generator=generator))
    noise = torch.randn(rows, inputs, generator=generator)
    x = (torch.randn(rows, inputs // 2 + 1, generator=generator) @ mixing + noise) * size
    return SmallLayer(torch.randn(outputs, inputs, generator=generator) * inputs**-0.5, x)
