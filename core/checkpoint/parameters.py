"""What a model expects to find in its checkpoint, from its config alone."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from bestiary.core.errors import DataError
from bestiary.core.plugins import resolve
from bestiary.spec import Model

if TYPE_CHECKING:
    from bestiary.core.config import ModelConfig


class Parameters(NamedTuple):
    """Shapes by parameter name, for every shared parameter's further names the name it is stored under, and the key-value heads
    of every cache by its path."""

    shapes: dict[str, tuple[int, ...]]
    aliases: dict[str, str]
    caches: Mapping[str, int] = MappingProxyType({})


def parameters(model: Model, config: ModelConfig) -> Parameters:
    """Names and shapes of the family's parameters; nothing is allocated."""
    import torch

    from bestiary.layers.cache import KVCache

    with torch.device("meta"):
        module = resolve(model.model, needed_by=f"model {model.name}")(config)
    names: dict[int, str] = {}
    caches = {path: one.spec.kv_heads for path, one in module.named_modules() if isinstance(one, KVCache)}
    found = Parameters({}, {}, caches)
    for name, parameter in module.named_parameters(remove_duplicate=False):
        first = names.setdefault(id(parameter), name)
        if first == name:
            found.shapes[name] = tuple(parameter.shape)
        else:
            found.aliases[name] = first
    return found


def check_names(model: Model, found: int) -> None:
    """Refuse a checkpoint whose tensor names are of another format than the family's plugin reads (DataError)."""
    if found != model.format:
        raise DataError(
            "E-CKPT-MODEL-FORMAT",
            "bestiary.json, field model_format",
            f"the tensor names are not those of the installed {model.name} plugin",
            found=str(found),
            expected=str(model.format),
            hint="convert the model again",
        )


def parse_config(model: Model, raw: Mapping[str, object]) -> ModelConfig:
    """The family's config from the object in ``config.json``."""
    config: ModelConfig = resolve(model.config, needed_by=f"model {model.name}").parse(raw)
    return config


def check_layers(config: ModelConfig, tensors: int, source: str) -> None:
    """Refuse a number of layers that the tensors can't fill, before a module of that depth is made."""
    if config.num_hidden_layers > tensors:
        raise DataError(
            "E-CFG-LAYERS",
            "config.json, field num_hidden_layers",
            f"is more than {source} can fill",
            found=str(config.num_hidden_layers),
            expected=f"at most its {tensors} tensors",
        )


def fields_of(config: ModelConfig, shape: tuple[int, ...]) -> str:
    """Which fields of the config have the sizes of ``shape``, for an error: ``vocab_size=32000, hidden_size=64``."""
    parts = []
    for size in dict.fromkeys(shape):
        names = [
            name
            for name in type(config).model_fields
            if type(getattr(config, name)) is int and getattr(config, name) == size
        ]
        if names:
            parts.append(f"{'/'.join(names[:3])}={size}")
    return ", ".join(parts)
