"""What the configs of all Mistral architectures share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import PositiveFloat, PositiveInt, model_validator

from bestiary import ConfigError
from bestiary.spec import GroupedQueryConfig


class BaseConfig(GroupedQueryConfig):
    """The keys of ``config.json`` that every Mistral has."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "hidden_act": (None, "silu"),
        "attention_bias": (None, False),
        "mlp_bias": (None, False),
        "partial_rotary_factor": (None, 1.0, 1),
    }
    one_kv_head_each: ClassVar[bool] = False
    whole_heads: ClassVar[bool] = True
    #: The window of a config that does not say; a null says that there is none.
    unsaid_window: ClassVar[int | None] = 4096

    max_position_embeddings: PositiveInt = 131072
    intermediate_size: PositiveInt
    hidden_act: str = "silu"
    rms_norm_eps: PositiveFloat = 1e-6
    tie_word_embeddings: bool = False
    sliding_window: PositiveInt | None = None

    @model_validator(mode="before")
    @classmethod
    def _unsaid_window(cls, raw: Any) -> Any:
        return {"sliding_window": cls.unsaid_window, **raw} if isinstance(raw, Mapping) else raw


def wrong(field: str, problem: str) -> ConfigError:
    """A field that does not agree with the others."""
    return ConfigError("E-CFG-ARITHMETIC", f"config.json, field {field}", problem)
