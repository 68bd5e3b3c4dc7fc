"""The config of the Llama family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import PositiveFloat, PositiveInt

from bestiary.spec import GroupedQueryConfig


class LlamaConfig(GroupedQueryConfig):
    """``config.json`` of a ``LlamaForCausalLM``."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "hidden_act": (None, "silu"),
        "partial_rotary_factor": (None, 1.0, 1),
    }
    whole_heads: ClassVar[bool] = True

    intermediate_size: PositiveInt
    hidden_act: str = "silu"
    rms_norm_eps: PositiveFloat = 1e-6
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
