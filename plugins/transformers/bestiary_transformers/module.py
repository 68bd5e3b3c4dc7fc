"""transformers' module for a config, without weights: parameters on the meta device, buffers computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .config import TransformersConfig, cannot, foreign_config


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
        with torch.device("cpu"), _UninitializedOnMeta():
            module = AutoModelForCausalLM.from_config(found, dtype=torch.float32, trust_remote_code=False)
    except Exception as error:
        raise cannot(subject, f"transformers can't make it: {type(error).__name__}: {error}") from error
    if getattr(module, "_is_stateful", False):
        raise cannot(subject, "it keeps a recurrent state, and the fallback's cache holds keys and values only")
    _adopt_buffers(module)
    _to_meta(module)
    if lost := [name for name, buffer in module.named_buffers() if buffer.is_meta]:
        raise cannot(subject, f"its buffer {lost[0]} is filled in a way that is not understood")
    return module.eval()


class _UninitializedOnMeta(TorchFunctionMode):
    """Weights, which are made as memory that nobody has written yet, take none."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func is torch.empty:
            given["device"] = "meta"
        return func(*args, **given)


def _adopt_buffers(module: nn.Module) -> None:
    """Make parameters of the buffers that are stored in checkpoints."""
    for child in module.modules():
        for name, buffer in list(child.named_buffers(recurse=False)):
            if name not in child._non_persistent_buffers_set and buffer.is_floating_point():
                delattr(child, name)
                child.register_parameter(name, nn.Parameter(buffer, requires_grad=False))


def _to_meta(module: nn.Module) -> None:
    """Move parameters there; one that has several places keeps them."""
    moved: dict[nn.Parameter, nn.Parameter] = {}
    for child in module.modules():
        for name, parameter in list(child.named_parameters(recurse=False, remove_duplicate=False)):
            if parameter not in moved:
                moved[parameter] = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
            setattr(child, name, moved[parameter])
