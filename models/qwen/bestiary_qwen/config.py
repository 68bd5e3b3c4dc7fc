"""What the configs of all Qwen architectures share: windows by layer, and which layers have experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from bestiary import ConfigError
from bestiary.spec import GroupedQueryConfig


class QwenConfig(GroupedQueryConfig):
    """The keys of ``config.json`` that every Qwen has. ``window`` and ``slides_by_default`` say what a layer sees."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "hidden_act": (None, "silu"),
        "partial_rotary_factor": (None, 1.0, 1),
        "use_mrope": (None, False),
        "dual_chunk_attention_config": (None,),
    }
    one_kv_head_each: ClassVar[bool] = False
    whole_heads: ClassVar[bool] = True

    max_position_embeddings: PositiveInt = 32768
    intermediate_size: PositiveInt
    hidden_act: str = "silu"
    rms_norm_eps: PositiveFloat = 1e-6
    tie_word_embeddings: bool = False
    use_sliding_window: bool = False
    sliding_window: Annotated[int, Field(ge=0)] | None = None
    max_window_layers: Annotated[int, Field(ge=0)] = 28
    layer_types: list[Literal["full_attention", "sliding_attention"]] | None = None

    @property
    def max_length(self) -> int:
        """Most tokens of a sequence. Qwen's way to switch yarn on leaves ``max_position_embeddings`` as it was."""
        if self.rope.kind != "yarn" or self.rope.original_max_position is None:
            return super().max_length
        return max(self.max_position_embeddings, int(self.rope.factor * self.rope.original_max_position))

    def window(self, layer: int) -> int | None:
        """Positions behind a token that a layer sees, itself included; None for all."""
        if self.layer_types is None:
            slides = self.use_sliding_window and self.slides_by_default(layer)
        else:
            slides = self.layer_types[layer] == "sliding_attention"
        return self.sliding_window if slides else None

    def slides_by_default(self, layer: int) -> bool:
        """Whether a layer has the window when ``layer_types`` does not say so: those above the lowest ones."""
        return layer >= self.max_window_layers

    @model_validator(mode="before")
    @classmethod
    def _null_is_no_window(cls, raw: Any) -> Any:
        # Said as null it is no window, whatever the switch says; left out it is another's default.
        nothing = (
            isinstance(raw, Mapping) and raw.get("sliding_window", 0) is None and raw.get("use_sliding_window") is True
        )
        return {**raw, "use_sliding_window": False} if nothing else raw

    @model_validator(mode="after")
    def _windows_fit(self) -> Self:
        if self.use_sliding_window and not self.sliding_window:
            raise wrong("sliding_window", f"is {self.sliding_window}, and use_sliding_window is true")
        if self.layer_types is None:
            return self
        if len(self.layer_types) != self.num_hidden_layers:
            raise wrong(
                "layer_types",
                f"has {len(self.layer_types)} entries for num_hidden_layers = {self.num_hidden_layers} layers",
            )
        if "sliding_attention" in self.layer_types and not self.use_sliding_window:
            layer = self.layer_types.index("sliding_attention")
            raise wrong("layer_types", f"gives layer {layer} a window, and use_sliding_window is false")
        return self


class SparseConfig(QwenConfig):
    """The keys of a Qwen some of whose layers have experts in place of one MLP."""

    # A number from a damaged file must not become as many names of tensors.
    num_experts: Annotated[int, Field(gt=0, le=4096)]
    num_experts_per_tok: PositiveInt
    moe_intermediate_size: PositiveInt
    norm_topk_prob: bool = False
    decoder_sparse_step: PositiveInt = 1
    mlp_only_layers: list[int] | None = None

    def sparse(self, layer: int) -> bool:
        """Whether a layer has experts."""
        return layer not in (self.mlp_only_layers or ()) and (layer + 1) % self.decoder_sparse_step == 0

    @model_validator(mode="after")
    def _experts_fit(self) -> Self:
        if self.num_experts_per_tok > self.num_experts:
            raise wrong(
                "num_experts_per_tok", f"is {self.num_experts_per_tok}, of num_experts = {self.num_experts} experts"
            )
        return self


def wrong(field: str, problem: str) -> ConfigError:
    """A field that does not agree with the others."""
    return ConfigError("E-CFG-ARITHMETIC", f"config.json, field {field}", problem)
