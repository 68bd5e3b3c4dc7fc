"""The config of Mixtral."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from bestiary_mistral.config import BaseConfig, wrong


class MixtralConfig(BaseConfig):
    """``config.json`` of a ``MixtralForCausalLM``: every layer has experts, of which each token has some."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {"layer_types": (None,)}
    default_rope_theta: ClassVar[float] = 1e6
    unsaid_window: ClassVar[int | None] = None

    rms_norm_eps: PositiveFloat = 1e-5
    # A number from a damaged file must not become as many names of tensors.
    num_local_experts: Annotated[int, Field(gt=0, le=4096)] = 8
    num_experts_per_tok: PositiveInt = 2

    @model_validator(mode="after")
    def _experts_fit(self) -> Self:
        if self.num_experts_per_tok > self.num_local_experts:
            raise wrong(
                "num_experts_per_tok",
                f"is {self.num_experts_per_tok}, of num_local_experts = {self.num_local_experts} experts",
            )
        return self
