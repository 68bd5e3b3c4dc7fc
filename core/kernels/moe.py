"""Mixtures of experts through torch's functions. T tokens · H hidden · E experts · k chosen · F features. Arguments as in the ops.

``pack`` lays an expert's gate and up side by side, ``[E, 2F, H]`` in the place of gate and None in that of up: one product
gives both. On a processor they stay apart, so that an engine's weights are the file's own pages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bestiary.core.kernels.dense import linear_widened
from bestiary.core.ops.activation import ACTIVATIONS


def moe_route(
    logits: Tensor, top_k: int, scoring: str, renormalize: bool, scale: float, *, out: tuple[Tensor, Tensor]
) -> None:
    weights, experts = out
    if not logits.shape[0]:
        return
    wide = logits.float()
    ordered, indices = wide.sort(dim=-1, descending=True, stable=True)
    top = ordered[:, :top_k]
    if scoring == "sigmoid":
        scores = top.sigmoid()
        if renormalize:
            scores /= scores.sum(-1, keepdim=True)
    elif renormalize:
        scores = top.softmax(-1)  # what the others weigh cancels out
    else:
        scores = (top - wide.logsumexp(-1, keepdim=True)).exp_()
    torch.mul(scores, scale, out=weights)
    experts.copy_(indices[:, :top_k])


def pack(constants: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
    """Gate and up as one matrix for each expert."""
    return {"gate": torch.cat((constants["gate"], constants["up"]), 1), "up": None}


def by_expert(experts: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The choices ``[T, k]`` in the order of their experts, as indices ``[T · k]``, and where each expert's end ``[E]`` int32."""
    ordered, order = experts.flatten().sort(dim=0, stable=True)
    ends = torch.searchsorted(ordered, torch.arange(count, device=experts.device, dtype=ordered.dtype), right=True)
    return order, ends.int()


def moe(
    x: Tensor, weights: Tensor, experts: Tensor, gate: Tensor, up: Tensor, down: Tensor, kind: str, *, out: Tensor
) -> None:
    """Each expert over its own tokens; the host waits to know how many those are."""
    each_expert(x, weights, experts, gate, up, down, ACTIVATIONS[kind], product, out)


def moe_widened(
    x: Tensor, weights: Tensor, experts: Tensor, gate: Tensor, up: Tensor, down: Tensor, kind: str, *, out: Tensor
) -> None:
    """In fp32 whatever the dtype, as ``dense.linear_widened``: for processors without 16-bit products."""
    each_expert(x, weights, experts, gate, up, down, ACTIVATIONS[kind], _widened_product, out)


def each_expert(
    x: Tensor,
    weights: Tensor,
    experts: Tensor,
    gate: Tensor | Sequence[Tensor],
    up: Tensor | Sequence[Tensor],
    down: Tensor | Sequence[Tensor],
    act: Callable[[Tensor], Tensor],
    multiply: Callable[[Tensor, Tensor], Tensor],
    out: Tensor,
) -> None:
    """``multiply(x, weight)`` is x · weightᵀ; a token's experts are added up in their order by number."""
    order, ends = by_expert(experts, len(gate))
    tokens, shares = order // experts.shape[1], weights.flatten()[order].unsqueeze(-1)
    total = x.new_zeros(x.shape, dtype=torch.float32)
    start = 0
    for expert, stop in enumerate(ends.tolist()):
        if stop > start:
            rows = tokens[start:stop]
            some = x[rows]
            gated = act(multiply(some, gate[expert]).float()).mul_(multiply(some, up[expert])).to(x.dtype)
            total.index_add_(0, rows, multiply(gated, down[expert]).float().mul_(shares[start:stop]))
        start = stop
    out.copy_(total)


def product(x: Tensor, weight: Tensor) -> Tensor:
    return torch.mm(x, weight.t())


def _widened_product(x: Tensor, weight: Tensor) -> Tensor:
    made = x.new_empty(x.shape[0], weight.shape[0], dtype=torch.float32)
    linear_widened(x, weight, out=made)
    return made


def moe_dense(
    x: Tensor, weights: Tensor, experts: Tensor, gate: Tensor, up: None, down: Tensor, kind: str, *, out: Tensor
) -> None:
    """Every expert over all tokens: the host waits for nothing, and few tokens together read all experts anyway."""
    if not x.shape[0]:
        return
    total = x.new_zeros(x.shape, dtype=torch.float32)
    for expert in range(gate.shape[0]):
        chosen = experts == expert
        share = (weights * chosen).sum(-1, keepdim=True)
        made = torch.mm(_gated(torch.mm(x, gate[expert].t()), kind, x.dtype), down[expert].t())
        # Where it was not chosen even an infinity counts for nothing.
        total += made.float().mul_(share).masked_fill_(~chosen.any(-1, keepdim=True), 0)
    out.copy_(total)


def moe_grouped(
    x: Tensor, weights: Tensor, experts: Tensor, gate: Tensor, up: None, down: Tensor, kind: str, *, out: Tensor
) -> None:
    """All experts in two grouped products over the tokens in the order of their experts; the host waits for nothing."""
    if not x.shape[0]:
        return
    order, ends = by_expert(experts, gate.shape[0])
    both = F.grouped_mm(x[order // experts.shape[1]], gate.transpose(1, 2), offs=ends)
    made = F.grouped_mm(_gated(both, kind, x.dtype), down.transpose(1, 2), offs=ends)
    placed = torch.empty(made.shape, dtype=torch.float32, device=x.device).index_copy_(0, order, made.float())
    out.copy_(placed.view(*experts.shape, -1).mul_(weights.unsqueeze(-1)).sum(1))


def _gated(both: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    gate, up = both.chunk(2, -1)
    return ACTIVATIONS[kind](gate.float()).mul_(up).to(dtype)
