"""Feed-forward layers."""

from __future__ import annotations

from torch import Tensor, nn

from bestiary import ops
from bestiary.layers.linear import Linear
from bestiary.layers.shard import Column, Row


class GatedMLP(nn.Module):
    """``down(act(gate(x)) · up(x))`` (Shazeer 2020): ``[T, hidden]`` → ``[T, hidden]``."""

    def __init__(self, hidden: int, intermediate: int, *, act: str, bias: bool = False) -> None:
        super().__init__()
        self.gate = Linear(hidden, intermediate, bias=bias, shard=Column(intermediate))
        self.up = Linear(hidden, intermediate, bias=bias, shard=Column(intermediate))
        self.down = Linear(intermediate, hidden, bias=bias, shard=Row(intermediate))
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.down(ops.gated_activation(self.gate(x), self.up(x), self.act))
