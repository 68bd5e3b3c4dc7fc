"""Activations. T tokens · F features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bestiary.core.ops.cost import Cost, nbytes
from bestiary.core.ops.declare import like_first, normal, op

#: The activations by the names that configs use for them.
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


#: Of one value: a function evaluated, and about three sums and products around it.
ACTIVATION_FLOPS = 4


def _gated(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    for kind in ACTIVATIONS:
        for tokens, features in ((1, 8), (5, 33)):
            both = normal(generator, tokens, 2 * features, dtype=dtype)
            yield both[:, :features], both[:, features:], kind  # halves of one product, as the build lays them
    both = normal(generator, 7, 2 * 11008, dtype=dtype)  # as wide as a model
    yield both[:, :11008], both[:, 11008:], "silu"


def _gated_cost(gate: Tensor, up: Tensor, kind: str) -> Cost:
    return Cost((ACTIVATION_FLOPS + 1) * gate.numel(), nbytes(gate, up, gate))


@op(inputs=_gated, fake=like_first, rows=("gate", "up"), cost=_gated_cost)
def gated_activation(gate: Tensor, up: Tensor, kind: str) -> Tensor:
    """``act(gate) · up``, computed in fp32: gate, up ``[T, F]`` → ``[T, F]``; ``kind`` names the activation."""
    return (ACTIVATIONS[kind](gate.float()) * up.float()).to(gate.dtype)


def _gates(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    for tokens, features, width in ((1, 8, 1), (5, 33, 1), (4, 6, 6), (17, 4096, 1), (17, 4096, 4096)):
        yield normal(generator, tokens, features, dtype=dtype), normal(generator, tokens, width, dtype=torch.float32)


def _gate_cost(x: Tensor, gate: Tensor) -> Cost:
    return Cost(ACTIVATION_FLOPS * gate.numel() + x.numel(), nbytes(x, gate, x))


@op(inputs=_gates, fake=like_first, rows=("x", "gate"), cost=_gate_cost)
def sigmoid_gate(x: Tensor, gate: Tensor) -> Tensor:
    """``σ(gate) · x``, computed in fp32: x ``[T, F]``, gate ``[T, 1]`` or ``[T, F]`` → ``[T, F]`` in x's dtype."""
    return (torch.sigmoid(gate.float()) * x.float()).to(x.dtype)
