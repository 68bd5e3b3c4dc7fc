"""What an error of a known size in its products does to a model's logits: the measure of all quantization methods.

Half a percent in each product may be one percent of the logits or twenty: it depends on depth, norms, rotation and routers,
not on the method. So a method's bound speaks of products, and the model itself tells what that means for its logits, by
weights that have normally distributed errors of this size.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from bestiary import hookimpl
from bestiary.core.conformance.model_case import Case
from bestiary.core.engine.load import LoadedEngine
from bestiary.core.engine.steps import logits, whole
from bestiary.core.ops.quantized import dequantize
from bestiary.core.plugins import PluginHost
from bestiary.core.quant.bound import relative
from bestiary.core.quant.layout import Shape, Stored
from bestiary.core.quant.method import Method
from bestiary.spec import Quantization

#: A method may do so many times as much harm as errors without any system. The zoo's ratios lie between 0.4 and 1.
ALLOWED = 2.0
_SEEDS = range(20, 24)
_NAME = "conformance-noise"


class Noise(Method):
    """Weights with errors of ``size`` times the root mean square of their rows, the same ones whenever they are made."""

    bound: ClassVar[float] = 1.0
    size: float

    def layout(self, shape: Shape) -> Mapping[str, Stored]:
        return {"codes": Stored("float32"), "scale": Stored("float32", (1, None))}

    def quantize(self, weight: Tensor, inputs: Sequence[object] = ()) -> dict[str, Tensor]:
        seed = zlib.crc32(weight.contiguous().numpy().tobytes())  # of each weight its own
        errors = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
        size = self.size * weight.square().mean(-1, keepdim=True).sqrt()
        return {"codes": weight + size * errors, "scale": torch.ones_like(size)}

    def weight(self, stored: Mapping[str, Tensor], shape: Shape, dtype: str) -> Tensor:
        return dequantize(stored["codes"], stored["scale"], None, (1, shape[-1]), shape[-1], dtype)


class _Plugin:
    @hookimpl
    def bestiary_register_quantizations(self, register: Callable[[Quantization], None]) -> None:
        register(Quantization(name=_NAME, method=f"{__name__}:Noise"))


def allowed(case: Case, size: float) -> float:
    """The error of logits that products may cause that are off by ``size``."""
    known = case.suite.shared.setdefault("noise", {})
    if (case.name, size) not in known:
        host = PluginHost.load(plugins=(*case.suite.plugins, _Plugin()), prefer=case.suite.prefer)
        known[case.name, size] = ALLOWED * error(case, case.load(host=host, quantization=f"{_NAME}:size={size}"))
    found: float = known[case.name, size]
    return found


def error(case: Case, engine: LoadedEngine) -> float:
    """The median over the tokens of a few sequences of how far an engine's logits are from the reference's."""
    errors = [relative(found, case.expected(tokens)) for tokens, found in answers(case, engine)]
    return float(torch.cat(errors).median())


def answers(case: Case, engine: LoadedEngine) -> list[tuple[list[int], Tensor]]:
    """The sequences that methods are measured on, and an engine's logits for each."""
    sequences = [(case.tokens(case.length, seed=seed), case.blocks(seed)) for seed in _SEEDS]
    return [(tokens, logits(engine, whole(tokens, *blocks)).clone()) for tokens, blocks in sequences]
