"""The config of Qwen3-MoE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import model_validator

from bestiary import ConfigError

from ..config import SparseConfig


class Qwen3MoeConfig(SparseConfig):
    """``config.json`` of a ``Qwen3MoeForCausalLM``. A window holds for all layers, whatever ``max_window_layers`` says."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {"layer_types": (None,)}

    attention_bias: bool = False

    def slides_by_default(self, layer: int) -> bool:
        return True

    @model_validator(mode="before")
    @classmethod
    def _fold_experts(cls, raw: Any) -> Any:
        """Qwen's files say ``num_experts``, those that transformers 5 writes ``num_local_experts``."""
        if not isinstance(raw, Mapping) or raw.get("num_local_experts") is None:
            return raw
        new, old = raw["num_local_experts"], raw.get("num_experts")
        if old not in (None, new):
            raise ConfigError(
                "E-CFG-CONTRADICTION",
                "config.json, fields num_experts and num_local_experts",
                "contradict each other",
                found=f"{old} and {new}"[:80],
            )
        return {**{key: value for key, value in raw.items() if key != "num_local_experts"}, "num_experts": new}
