"""transformers' module as a model of bestiary: its parameters under their own names, its caches declared as paged ones."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from bestiary import ConfigError
from bestiary.layers import CacheSpec, CausalLM, KVCache, Step

from .config import TransformersConfig, foreign_config
from .op import Foreign, forward
from .paged import cache_specs


class Wrapped(CausalLM):
    """One op, ``transformers::forward``, which runs the wrapped module for each sequence of the step."""

    def __init__(self, c: TransformersConfig) -> None:
        super().__init__()
        module = _empty(foreign_config(c.raw))
        for name, child in module.named_children():
            self.add_module(name, child)
        found = cache_specs(module)
        self.foreign = Foreign(module, tuple(found), c.vocab_size)
        self.caches = nn.ModuleList(KVCache(CacheSpec(*sizes)) for sizes in found.values())

    def forward(self, step: Step) -> Tensor:
        memory = [step.cache(declared) for declared in self.caches]
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


def _empty(config: Any) -> nn.Module:
    """The module with its parameters on the meta device and its buffers, which no checkpoint has, computed.

    Raises:
        ConfigError: transformers can't make it, or it keeps a state that is no keys and values.
    """
    from transformers import AutoModelForCausalLM

    thread = threading.get_ident()

    def to_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta or threading.get_ident() != thread:
            return None
        return nn.Parameter(parameter.to("meta"), requires_grad=False)

    hook = register_module_parameter_registration_hook(to_meta)
    try:
        with torch.device("cpu"):
            module: nn.Module = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except Exception as error:
        raise _wrong(config, f"transformers can't make it: {type(error).__name__}: {error}") from error
    finally:
        hook.remove()
    if getattr(module, "_is_stateful", False):
        raise _wrong(config, "it keeps a recurrent state, and the fallback's cache holds keys and values only")
    persistent = sorted(set(module.state_dict()) - {name for name, _ in module.named_parameters(remove_duplicate=False)})
    if persistent:
        raise _wrong(config, f"its checkpoint holds tensors that are no parameters: {', '.join(persistent[:3])}")
    return module.eval()


def _wrong(config: Any, problem: str) -> ConfigError:
    subject = f"config.json, architecture {config.architectures[0]}"
    hint = "write a model plugin for it"
    return ConfigError("E-CFG-FALLBACK", subject, f"the fallback can't run it: {problem}", hint=hint)
