"""Mixtures of experts. T tokens · E experts · F features of one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bestiary import ops
from bestiary.layers.linear import Linear
from bestiary.layers.shard import Experts


class MoE(nn.Module):
    """A sum over the ``top_k`` of E gated MLPs that a router chooses for each token: ``[T, hidden]`` → ``[T, hidden]``.

    The router's logits and what it makes of them are fp32 in every dtype. Parameters: ``router.weight [E, hidden]``,
    ``experts.gate`` and ``experts.up [E, F, hidden]``, ``experts.down [E, hidden, F]``, those of ``shared``, and
    ``shared_gate.weight [1, hidden]``.

    Args:
        hidden: features in and out.
        intermediate: F.
        experts: E.
        top_k: experts of a token.
        act: the activation.
        scoring: what the logits become: ``"softmax"`` over all experts, or ``"sigmoid"``.
        renormalize: whether a token's weights are divided by their sum.
        scale: what they are multiplied by after that.
        shared: a module that every token goes through, added to the experts' sum.
        shared_gate: whether its result is multiplied by the sigmoid of a product of its own.
    """

    def __init__(
        self,
        hidden: int,
        intermediate: int,
        *,
        experts: int,
        top_k: int,
        act: str,
        scoring: str = "softmax",
        renormalize: bool = True,
        scale: float = 1.0,
        shared: nn.Module | None = None,
        shared_gate: bool = False,
    ) -> None:
        super().__init__()
        self.router = Linear(hidden, experts)
        self.experts = ExpertWeights(experts, hidden, intermediate)
        self.shared = shared
        self.shared_gate = Linear(hidden, 1) if shared_gate else None
        self.top_k, self.act, self.scoring = top_k, act, scoring
        self.renormalize, self.scale = renormalize, scale

    def forward(self, x: Tensor) -> Tensor:
        logits = ops.logits(x, self.router.weight)  # [T, E] fp32
        weights, experts = ops.moe_route(logits, self.top_k, self.scoring, self.renormalize, self.scale)
        gate, up, down = self.experts.gate, self.experts.up, self.experts.down
        mixed = ops.moe(x, weights, experts, gate, up, down, self.act)
        if self.shared is None:
            return mixed
        shared: Tensor = self.shared(x)
        if self.shared_gate is not None:
            shared = ops.sigmoid_gate(shared, ops.logits(x, self.shared_gate.weight))
        return mixed + shared


class ExpertWeights(nn.Module):
    """The weights of all experts, one tensor for each of their matrices; each rank has some of every expert's features."""

    def __init__(self, experts: int, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.empty(experts, intermediate, hidden))
        self.up = nn.Parameter(torch.empty(experts, intermediate, hidden))
        self.down = nn.Parameter(torch.empty(experts, hidden, intermediate))
        self.shard = Experts(intermediate)
