"""The config of models whose attention has grouped key-value heads: their fields, and what must fit together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import PositiveInt, model_validator

from bestiary.core.config import ModelConfig
from bestiary.core.errors import ConfigError

__all__ = ["GroupedQueryConfig"]


class GroupedQueryConfig(ModelConfig):
    """A :class:`ModelConfig` with the fields of multi-head, grouped-query or multi-query attention.

    Refused are heads that don't divide ``hidden_size`` (where ``head_dim`` does not say their size), key-value heads that
    don't divide the heads, and heads of which an odd number of features is rotated, because rotary embedding turns pairs.

    Attributes:
        one_kv_head_each: whether a config that does not say has as many key-value heads as heads. A null says so in any
            case.
        whole_heads: refuse a rope that turns a part of each head only.
    """

    one_kv_head_each: ClassVar[bool] = True
    whole_heads: ClassVar[bool] = False

    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    head_dim: PositiveInt | None = None

    @property
    def head(self) -> int:
        """Features of one attention head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @model_validator(mode="before")
    @classmethod
    def _default_kv_heads(cls, raw: Any) -> Any:
        name = "num_key_value_heads"
        if not isinstance(raw, Mapping) or not (cls.one_kv_head_each or name in raw) or raw.get(name) is not None:
            return raw
        return {**raw, name: raw["num_attention_heads"]} if "num_attention_heads" in raw else raw

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        hidden, heads, kv = self.hidden_size, self.num_attention_heads, self.num_key_value_heads
        if self.head_dim is None and hidden % heads:
            raise _wrong("num_attention_heads", f"does not divide hidden_size: {_division(hidden, heads)}")
        if heads % kv:
            raise _wrong("num_key_value_heads", f"does not divide num_attention_heads: {_division(heads, kv)}")
        if self.head % 2:
            arithmetic = "" if self.head_dim else f" = hidden_size / num_attention_heads = {hidden} / {heads}"
            raise _wrong("head_dim", f"is odd, and rotary embedding turns pairs: {self.head}{arithmetic}")
        if self.whole_heads and self.rope.partial_rotary_factor != 1.0:
            part = f"is {self.rope.partial_rotary_factor}; {type(self).__name__} rotates whole heads"
            raise _wrong("rope_parameters.partial_rotary_factor", part)
        self.rope.rotated(self.head)
        return self


def _division(whole: int, part: int) -> str:
    return f"{whole} = {whole // part} * {part} + {whole % part}"


def _wrong(field: str, problem: str) -> ConfigError:
    return ConfigError("E-CFG-ARITHMETIC", f"config.json, field {field}", problem)
