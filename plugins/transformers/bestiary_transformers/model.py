"""transformers' module as a model of bestiary: its parameters under their own names, its caches declared as paged ones."""

from __future__ import annotations

from torch import Tensor, nn

from bestiary.layers import CacheSpec, CausalLM, KVCache, Step

from .config import TransformersConfig
from .module import make_module
from .op import Foreign, forward
from .paged import stored_sizes


class Wrapped(CausalLM):
    """One op, ``transformers::forward``, which runs the wrapped module for each sequence of the step."""

    def __init__(self, c: TransformersConfig) -> None:
        super().__init__()
        module = make_module(c)
        for name, child in module.named_children():
            self.add_module(name, child)
        sizes = stored_sizes(module)
        self.foreign = Foreign(module, tuple(sizes), c.vocab_size)
        self._memory = tuple(KVCache(CacheSpec(*of_layer)) for of_layer in sizes.values())
        self.caches = nn.ModuleList(self._memory)

    def forward(self, step: Step) -> Tensor:
        memory = [step.cache(declared) for declared in self._memory]
        weights = dict(self.named_parameters())
        return forward(
            step.tokens,
            step.query_starts,
            step.kv_lengths,
            step.logit_rows,
            [layer.slots for layer in memory],
            [layer.block_tables for layer in memory],
            [layer.k for layer in memory],
            [layer.v for layer in memory],
            [weights[name] for name in self.foreign.names],
            self.foreign,
        )
