"""From a directory to its model family and config, whatever kind of directory it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bestiary.core.checkpoint.checkpoint import is_checkpoint
from bestiary.core.checkpoint.files import JSON_LIMIT, read_json
from bestiary.core.checkpoint.manifest import Manifest
from bestiary.core.checkpoint.parameters import parse_config
from bestiary.core.config import ModelConfig
from bestiary.core.engine.engine import EngineManifest, is_engine
from bestiary.core.errors import ConfigError
from bestiary.core.plugins import PluginHost
from bestiary.spec import Model


def config_of(directory: Path) -> Mapping[str, object]:
    """The model's config: a checkpoint and an engine carry theirs, any other directory has a config.json."""
    if is_engine(directory):
        return EngineManifest.read(directory).checkpoint.config
    if is_checkpoint(directory):
        return Manifest.read(directory).config
    return read_json(directory, "config.json", limit=JSON_LIMIT)


def family_of(raw: Mapping[str, object], host: PluginHost) -> tuple[Model, ModelConfig]:
    """The family that serves the config's architecture, and the config as that family reads it.

    Raises:
        ConfigError: it names no architecture.
        PluginError: nobody serves it.
    """
    names = raw.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise ConfigError(
            "E-CFG-ARCHITECTURE", "config.json, field architectures", "names no architecture", found=repr(names)
        )
    kind = raw.get("model_type")
    model = host.model_for_architecture(names[0], model_type=kind if isinstance(kind, str) else None)
    return model, parse_config(model, raw)
