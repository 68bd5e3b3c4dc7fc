"""Sparse mixtures of experts (Shazeer et al. 2017). T tokens · H hidden · E experts · k chosen of them · F features of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bestiary.core.ops.activation import ACTIVATION_FLOPS, ACTIVATIONS, gated_activation
from bestiary.core.ops.cost import Cost, nbytes
from bestiary.core.ops.declare import Tolerance, like_first, normal, op

#: What an expert's logit says of its weight, by the names that configs use.
SCORINGS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits: logits.softmax(-1),
    "sigmoid": torch.sigmoid,
}

#: Two products follow each other, and what lies between them is rounded too.
TWO_PRODUCTS = {
    "float64": Tolerance(1e-9, 1e-9),
    "float32": Tolerance(1e-4, 1e-5),
    "bfloat16": Tolerance(6e-2, 3e-2),
    "float16": Tolerance(8e-3, 4e-3),
}


def _route_inputs(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    for tokens, experts, top_k in ((1, 8, 2), (5, 7, 3), (33, 60, 4), (0, 4, 1), (3, 1, 1), (4, 5, 5), (600, 128, 8)):
        for scoring in SCORINGS:
            logits = normal(generator, tokens, experts, dtype=dtype)
            yield logits, top_k, scoring, True, 1.0 if top_k < 4 else 2.5
    for scoring in SCORINGS:
        yield normal(generator, 6, 10, dtype=dtype), 3, scoring, False, 1.5
        yield normal(generator, 5, 7, dtype=dtype, scale=100.0), 2, scoring, True, 1.0  # no exponential holds these
    yield torch.zeros(3, 9, device=generator.device, dtype=dtype), 4, "softmax", False, 1.0  # all are equal


def _routed(
    logits: Tensor, top_k: int, scoring: str, renormalize: bool = True, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    chosen = (logits.shape[0], top_k)
    return logits.new_empty(chosen, dtype=torch.float32), logits.new_empty(chosen, dtype=torch.int32)


def _route_cost(logits: Tensor, top_k: int, scoring: str, renormalize: bool = True, scale: float = 1.0) -> Cost:
    """A score for each expert and their sum; what is chosen is scaled. Comparisons count for nothing."""
    chosen = logits.shape[0] * top_k
    flops = ACTIVATION_FLOPS * logits.numel() + (3 if renormalize else 1) * chosen
    return Cost(flops, nbytes(logits) + chosen * (torch.float32.itemsize + torch.int32.itemsize))


@op(inputs=_route_inputs, fake=_routed, rows=("logits",), cost=_route_cost)
def moe_route(
    logits: Tensor, top_k: int, scoring: str, renormalize: bool = True, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The ``top_k`` largest of ``logits``, largest first, and ``scale · score`` of each in fp32.

    logits ``[T, E]`` → weights ``[T, k]`` fp32, experts ``[T, k]`` int32. ``scoring`` is ``"softmax"`` (over all E) or
    ``"sigmoid"``; ``renormalize`` divides a token's scores by their sum. Of equal logits the lower expert comes first.
    """
    wide = logits.float()
    chosen = wide.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    scores = SCORINGS[scoring](wide).gather(-1, chosen)
    if renormalize:
        scores = scores / scores.sum(-1, keepdim=True)
    return scores * scale, chosen.int()


def _moe_inputs(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    # One token; no token; experts that nobody chose; one expert; all experts; sizes that libraries like; a model's.
    shapes = (
        (1, 8, 2, 32, 24),
        (0, 4, 2, 8, 8),
        (3, 16, 2, 17, 9),
        (5, 1, 1, 33, 16),
        (7, 3, 3, 20, 40),
        (19, 8, 2, 64, 48),
        (35, 8, 2, 512, 256),
    )
    for index, (tokens, experts, top_k, hidden, features) in enumerate(shapes):
        wide = normal(generator, tokens, hidden + 8, dtype=dtype)
        weights, chosen = moe_route.reference(normal(generator, tokens, experts, dtype=dtype), top_k, "softmax")
        matrices = [
            normal(generator, experts, *shape, dtype=dtype, scale=shape[-1] ** -0.5)
            for shape in ((features, hidden), (features, hidden), (hidden, features))
        ]
        yield wide[:, :hidden], weights, chosen, *matrices, list(ACTIVATIONS)[index % len(ACTIVATIONS)]


def _moe_cost(x: Tensor, weights: Tensor, experts: Tensor, gate: Tensor, up: Tensor, down: Tensor, kind: str) -> Cost:
    """Each token goes through its own experts only, and only the experts that some token chose are read."""
    calls, used = experts.numel(), len(set(experts.flatten().tolist()))
    (_, features, hidden), outward = gate.shape, down.shape[1]
    products = 2 * features * (2 * hidden + outward) + (ACTIVATION_FLOPS + 1) * features
    matrices = used * nbytes(gate, up, down) // gate.shape[0]
    return Cost(calls * (products + 2 * outward), nbytes(x, weights, experts, x) + matrices)


@op(
    inputs=_moe_inputs,
    tolerances=TWO_PRODUCTS,
    fake=like_first,
    constants=("gate", "up", "down"),
    rows=("x", "weights", "experts"),
    cost=_moe_cost,
)
def moe(x: Tensor, weights: Tensor, experts: Tensor, gate: Tensor, up: Tensor, down: Tensor, kind: str) -> Tensor:
    """``Σ_j weights[t, j] · down[e](act(gate[e](x)) · up[e](x))`` with ``e = experts[t, j]``, the sum over k in fp32.

    x ``[T, H]``, weights ``[T, k]`` fp32, experts ``[T, k]`` int32 (those of a token differ), gate and up ``[E, F, H]``,
    down ``[E, H, F]`` → ``[T, H]`` in x's dtype; ``kind`` names the activation.
    """
    total = x.new_zeros(x.shape, dtype=torch.promote_types(x.dtype, torch.float32))
    for expert in range(gate.shape[0]):
        tokens, places = (experts == expert).nonzero(as_tuple=True)
        if len(tokens):
            some = x[tokens]
            gated = gated_activation.reference(F.linear(some, gate[expert]), F.linear(some, up[expert]), kind)
            made = F.linear(gated, down[expert]).to(total.dtype)
            total.index_add_(0, tokens, made * weights[tokens, places].unsqueeze(-1))
    return total.to(x.dtype)
