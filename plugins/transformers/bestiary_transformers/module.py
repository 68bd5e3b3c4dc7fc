"""transformers' module for a config, without weights: parameters on the meta device, buffers computed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from .config import ONLY, TransformersConfig, cannot, foreign_config

# Elements; no buffer has as many.
_LARGE = 2**24


def make_module(config: TransformersConfig) -> Any:
    """The ``…ForCausalLM`` of the config, in evaluation mode. What a checkpoint holds of it are parameters, all of it.

    Raises:
        ConfigError: transformers can't make it, or it keeps a state that is no keys and values.
    """
    from transformers import AutoModelForCausalLM

    found = foreign_config(config.raw)
    subject = f"architecture {found.architectures[0]}"
    try:
        # Buffers are made for real, wherever the caller wants tensors: no checkpoint has them.
        with torch.device("cpu"), _WeightsOnMeta(), _parameters_on_meta():
            module = AutoModelForCausalLM.from_config(found, dtype=torch.float32, trust_remote_code=False)
    except Exception as error:
        raise cannot(subject, f"transformers can't make it: {type(error).__name__}: {error}") from error
    if getattr(module, "_is_stateful", False):
        reason = f"transformers knows it, but it keeps a recurrent state, and {ONLY}"
        raise cannot(subject, reason, hint="choose a model whose memory is keys and values")
    _adopt_buffers(module)
    if lost := [name for name, buffer in module.named_buffers() if buffer.is_meta]:
        raise cannot(subject, f"its buffer {lost[0]} is filled in a way that is not understood")
    return module.eval()


class _WeightsOnMeta(TorchFunctionMode):
    """Weights take no memory, not even while they are made: memory that nobody has written yet, and large constants."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        sizes = args[0] if args and isinstance(args[0], (tuple, list)) else args
        if func is torch.empty or (func in (torch.zeros, torch.ones, torch.rand, torch.randn) and prod(sizes) > _LARGE):
            given["device"] = "meta"
        return func(*args, **given)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Parameters of modules that this thread makes lose their values as soon as they have their place."""
    thread = threading.get_ident()

    def moved(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta or threading.get_ident() != thread:
            return None  # as it is; a shared one stays one
        return nn.Parameter(parameter.detach().to("meta"), requires_grad=False)

    hook = register_module_parameter_registration_hook(moved)  # type: ignore[arg-type]
    try:
        yield
    finally:
        hook.remove()


def _adopt_buffers(module: nn.Module) -> None:
    """Make parameters of the buffers that are stored in checkpoints."""
    for child in module.modules():
        for name, buffer in list(child.named_buffers(recurse=False)):
            if name not in child._non_persistent_buffers_set and buffer.is_floating_point():
                delattr(child, name)
                child.register_parameter(name, nn.Parameter(buffer.to("meta"), requires_grad=False))
