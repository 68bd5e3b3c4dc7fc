"""The config of Mistral."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from bestiary_mistral.config import BaseConfig


class MistralConfig(BaseConfig):
    """``config.json`` of a ``MistralForCausalLM``: one window for all layers, or none."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {"layer_types": (None,)}
