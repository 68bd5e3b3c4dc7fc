"""The frame of a causal language model."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from bestiary import ops
from bestiary.layers.embedding import Embedding, Head
from bestiary.layers.step import Step


class LayerStack(nn.ModuleList):
    """The model's layers, made by ``make(index)``. Between two of them a model may be cut into pipeline stages."""

    def __init__(self, count: int, make: Callable[[int], nn.Module]) -> None:
        super().__init__(make(index) for index in range(count))


class CausalLM(nn.Module):
    """Tokens to logits. A subclass sets the four parts; each layer is called as ``layer(x, step)``.

    ``forward(step)`` gives the logits ``[R, vocabulary]`` of the step's ``logit_rows``.
    """

    embed: Embedding
    layers: LayerStack
    norm: nn.Module
    head: Head

    def forward(self, step: Step) -> Tensor:
        x = self.embed(step.tokens)
        for layer in self.layers:
            x = layer(x, step)
        return self.head(ops.select_rows(self.norm(x), step.logit_rows))
