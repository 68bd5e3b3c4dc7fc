"""The reference mode: the model's own forward, run eagerly on the ops' references. Everything is compared with it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bestiary.core.program.program import Part
from bestiary.core.program.trace import cache_groups
from bestiary.core.runtime.inputs import StepInputs
from bestiary.core.runtime.messages import StepMessage
from bestiary.layers.cache import KVCache
from bestiary.layers.step import LayerCache, Step


class ReferenceRunner:
    """In place of :class:`~bestiary.core.runtime.runner.Runner`: no trace, no pass, no kernel, no shared buffer.

    Args:
        module: the model on the meta device; its parameters are filled here.
        source: gives each parameter's value.
    """

    def __init__(self, module: nn.Module, source: Callable[[Part], Tensor], inputs: StepInputs) -> None:
        self._module, self.inputs = module, inputs
        self._taps: dict[str, Tensor] = {}
        for name, parameter in list(module.named_parameters()):
            _fill(module, parameter, source(Part(name, tuple(parameter.shape))))
        for path, child in module.named_modules():
            child.register_forward_hook(self._keep(path))

    def forward(self, step: StepMessage) -> dict[str, Tensor]:
        """``logits`` ``[R, vocabulary]`` of the step's rows, in order, what every module returned, by its path, and what it
        was given first, by its path and ``.input``."""
        views = self.inputs.views(self.inputs.write(step))
        caches = {path: module for path, module in self._module.named_modules() if isinstance(module, KVCache)}
        specs = cache_groups({path: module.spec for path, module in caches.items()})
        memory = {}
        for path, module in caches.items():
            group = specs.index(module.spec)
            slots, tables = views[f"slots.{group}"], views[f"block_tables.{group}"]
            memory[module] = LayerCache(views[f"k.{path}"], views[f"v.{path}"], slots, tables)
        given = Step(
            tokens=views["tokens"],
            positions=views["positions"],
            lengths=views["lengths"],
            logit_rows=views["logit_rows"],
            query_starts=views["query_starts"],
            kv_lengths=views["kv_lengths"],
            caches=memory,
        )
        self._taps = {}
        with torch.no_grad():
            logits = self._module(given)
        asked = {name: self._taps[name.removesuffix(".output")] for rows in step.taps for name in rows.names}
        return {**self._taps, **asked, "logits": logits}

    def _keep(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, output: object) -> None:
            if isinstance(output, Tensor):
                self._taps[path] = output
            if isinstance(args, tuple) and args and isinstance(args[0], Tensor):
                self._taps[f"{path}.input"] = args[0]

        return hook


def _fill(module: nn.Module, parameter: nn.Parameter, value: Tensor) -> None:
    """Put a value in place of a meta parameter wherever it is used: a tied one has several places."""
    filled = nn.Parameter(value, requires_grad=False)
    for child in module.modules():
        for name, held in child.named_parameters(recurse=False, remove_duplicate=False):
            if held is parameter:
                setattr(child, name, filled)
