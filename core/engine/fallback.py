"""What a fallback model can't be asked for, and how an engine says that one runs it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from bestiary.core.engine.options import BuildOptions
from bestiary.core.errors import ConfigError
from bestiary.core.plugins import PluginHost
from bestiary.spec import Model

log = logging.getLogger("bestiary.engine")


def check_fallback(model: Model, options: BuildOptions, memory_limit: int | None = None) -> None:
    """Refuse what works on step programs of layers, which a fallback has not (ConfigError, naming option and fallback)."""
    if model.fallback is None:
        return
    asked = {
        "tensor_parallel": options.tensor_parallel if options.tensor_parallel > 1 else None,
        "pipeline_parallel": options.pipeline_parallel if options.pipeline_parallel > 1 else None,
        "quantization": options.quantization,
        "deterministic": options.deterministic or None,
        "memory_limit": memory_limit,
    }
    for name, found in asked.items():
        if found is not None:
            raise ConfigError(
                "E-ENGINE-FALLBACK",
                name,
                f"the fallback {model.name} can't do it: it runs another library's module as it is",
                found=str(found),
                expected="a model plugin that serves the architecture",
                hint=f"leave {name} out, or write a model plugin",
            )


def announce(model: Model, raw: Mapping[str, Any], host: PluginHost) -> str:
    """Say that a fallback runs the engine of this config, if so; the words for a report, empty if not."""
    if model.fallback is None:
        return ""
    architecture = raw["architectures"][0]
    serving = host.model_for_architecture(architecture, model_type=raw.get("model_type"))
    if serving.fallback is None:
        log.warning(
            "%s runs by the fallback %s, slowly, but the plugin %s serves it now: convert the model again",
            architecture, model.name, host.origin(serving),
        )  # fmt: skip
    else:
        log.warning(
            "no model plugin serves %s: the fallback %s (%s) runs it, slowly",
            architecture, model.name, host.origin(model),
        )  # fmt: skip
    return f", run by the fallback {model.name}: slow"
