"""What the configs of all Mistral architectures share: heads and the sliding window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import PositiveFloat, PositiveInt, model_validator

from bestiary import ConfigError
from bestiary.spec import ModelConfig


class BaseConfig(ModelConfig):
    """The keys of ``config.json`` that every Mistral has."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "hidden_act": (None, "silu"),
        "attention_bias": (None, False),
        "mlp_bias": (None, False),
        "partial_rotary_factor": (None, 1.0, 1),
    }
    #: The window of a config that does not say; a null says that there is none.
    unsaid_window: ClassVar[int | None] = 4096

    max_position_embeddings: PositiveInt = 131072
    intermediate_size: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    head_dim: PositiveInt | None = None
    hidden_act: str = "silu"
    rms_norm_eps: PositiveFloat = 1e-6
    tie_word_embeddings: bool = False
    sliding_window: PositiveInt | None = None

    @property
    def head(self) -> int:
        """Features of one attention head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping):
            return raw
        values = {"sliding_window": cls.unsaid_window, **raw}
        if "num_key_value_heads" in raw and raw["num_key_value_heads"] is None:
            values["num_key_value_heads"] = raw.get("num_attention_heads")
        return values

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        hidden, heads, kv = self.hidden_size, self.num_attention_heads, self.num_key_value_heads
        if self.head_dim is None and hidden % heads:
            raise wrong(
                "num_attention_heads",
                f"does not divide hidden_size: {hidden} = {hidden // heads} * {heads} + {hidden % heads}",
            )
        if heads % kv:
            raise wrong(
                "num_key_value_heads",
                f"does not divide num_attention_heads: {heads} = {heads // kv} * {kv} + {heads % kv}",
            )
        if self.head % 2:
            arithmetic = "" if self.head_dim else f" = hidden_size / num_attention_heads = {hidden} / {heads}"
            raise wrong("head_dim", f"is odd, and rotary embedding turns pairs: {self.head}{arithmetic}")
        if self.rope.partial_rotary_factor != 1.0:
            raise wrong(
                "rope_parameters.partial_rotary_factor",
                f"is {self.rope.partial_rotary_factor}; Mistral rotates whole heads",
            )
        return self


def wrong(field: str, problem: str) -> ConfigError:
    """A field that does not agree with the others."""
    return ConfigError("E-CFG-ARITHMETIC", f"config.json, field {field}", problem)
