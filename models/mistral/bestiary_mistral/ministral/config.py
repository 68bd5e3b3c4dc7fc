"""The config of Ministral."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from bestiary_mistral.config import BaseConfig, wrong


class MinistralConfig(BaseConfig):
    """``config.json`` of a ``MinistralForCausalLM``: ``layer_types`` says which layers have the window."""

    layer_types: list[Literal["full_attention", "sliding_attention"]] | None = None

    def window(self, layer: int) -> int | None:
        """Positions behind a token that a layer sees, itself included; None for all."""
        slides = self.layer_types is None or self.layer_types[layer] == "sliding_attention"
        return self.sliding_window if slides else None

    @model_validator(mode="after")
    def _windows_fit(self) -> Self:
        if self.layer_types is None:
            return self
        if len(self.layer_types) != self.num_hidden_layers:
            raise wrong(
                "layer_types",
                f"has {len(self.layer_types)} entries for num_hidden_layers = {self.num_hidden_layers} layers",
            )
        if "sliding_attention" in self.layer_types and self.sliding_window is None:
            layer = self.layer_types.index("sliding_attention")
            raise wrong("layer_types", f"gives layer {layer} a window, and sliding_window is null")
        return self
