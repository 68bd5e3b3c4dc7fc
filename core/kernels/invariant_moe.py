"""Batch-invariant mixtures of experts: products in tiles of one shape, as :mod:`bestiary.core.kernels.invariant` says."""

from __future__ import annotations

import torch
from torch import Tensor

from bestiary.core.kernels import invariant
from bestiary.core.kernels.moe import each_expert


def moe_route(
    logits: Tensor, top_k: int, scoring: str, renormalize: bool, scale: float, *, out: tuple[Tensor, Tensor]
) -> None:
    weights, experts = out
    wide = logits.float()
    ordered, indices = wide.sort(dim=-1, descending=True, stable=True)
    top = ordered[:, :top_k]
    scores = invariant.sigmoid(top) if scoring == "sigmoid" else (top - ordered[:, :1]).exp_()
    if renormalize:
        scores /= _few_summed(scores)
    elif scoring == "softmax":
        scores /= invariant.row_sums((wide - ordered[:, :1]).exp_())
    torch.mul(scores, scale, out=weights)
    experts.copy_(indices[:, :top_k])


def _few_summed(x: Tensor) -> Tensor:
    """The sums over the last axis, one column after the other: x ``[T, k]`` → ``[T, 1]``."""
    total = x[:, :1].clone()
    for column in range(1, x.shape[1]):
        total += x[:, column : column + 1]
    return total


def moe(
    x: Tensor, weights: Tensor, experts: Tensor, gate: Tensor, up: Tensor, down: Tensor, kind: str, *, out: Tensor
) -> None:
    each_expert(x, weights, experts, gate, up, down, invariant.ACTIVATIONS[kind], _product, out)


def _product(x: Tensor, weight: Tensor) -> Tensor:
    made = x.new_empty(x.shape[0], weight.shape[0])
    invariant.linear(x, weight, out=made)
    return made


def moe_widened(
    x: Tensor, weights: Tensor, experts: Tensor, gate: Tensor, up: Tensor, down: Tensor, kind: str, *, out: Tensor
) -> None:
    """In fp32, as ``invariant.linear_widened``."""
    each_expert(x, weights, experts, gate, up, down, invariant.ACTIVATIONS[kind], _widened_product, out)


def _widened_product(x: Tensor, weight: Tensor) -> Tensor:
    made = x.new_empty(x.shape[0], weight.shape[0], dtype=torch.float32)
    invariant.linear_widened(x, weight, out=made)
    return made
