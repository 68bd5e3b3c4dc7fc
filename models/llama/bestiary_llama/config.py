"""The config of the Llama family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import PositiveFloat, PositiveInt, model_validator

from bestiary import ConfigError
from bestiary.spec import ModelConfig


class LlamaConfig(ModelConfig):
    """``config.json`` of a ``LlamaForCausalLM``."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "hidden_act": (None, "silu"),
        "partial_rotary_factor": (None, 1.0, 1),
    }

    intermediate_size: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    head_dim: PositiveInt | None = None
    hidden_act: str = "silu"
    rms_norm_eps: PositiveFloat = 1e-6
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False

    @property
    def head(self) -> int:
        """Features of one attention head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @model_validator(mode="before")
    @classmethod
    def _default_kv_heads(cls, raw: Any) -> Any:
        if isinstance(raw, Mapping) and raw.get("num_key_value_heads") is None and "num_attention_heads" in raw:
            return {**raw, "num_key_value_heads": raw["num_attention_heads"]}
        return raw

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        hidden, heads, kv = self.hidden_size, self.num_attention_heads, self.num_key_value_heads
        if self.head_dim is None and hidden % heads:
            raise _wrong(
                "num_attention_heads",
                f"does not divide hidden_size: {hidden} = {hidden // heads} * {heads} + {hidden % heads}",
            )
        if heads % kv:
            raise _wrong(
                "num_key_value_heads",
                f"does not divide num_attention_heads: {heads} = {heads // kv} * {kv} + {heads % kv}",
            )
        if self.head % 2:
            arithmetic = "" if self.head_dim else f" = hidden_size / num_attention_heads = {hidden} / {heads}"
            raise _wrong("head_dim", f"is odd, and rotary embedding turns pairs: {self.head}{arithmetic}")
        if self.rope.partial_rotary_factor != 1.0:
            raise _wrong(
                "rope_parameters.partial_rotary_factor",
                f"is {self.rope.partial_rotary_factor}; Llama rotates whole heads",
            )
        return self


def _wrong(field: str, problem: str) -> ConfigError:
    return ConfigError("E-CFG-ARITHMETIC", f"config.json, field {field}", problem)
