"""What the configs of all Qwen architectures share: heads, windows by layer, and which layers have experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from bestiary import ConfigError
from bestiary.spec import ModelConfig


class QwenConfig(ModelConfig):
    """The keys of ``config.json`` that every Qwen has. ``window`` and ``slides_by_default`` say what a layer sees."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "hidden_act": (None, "silu"),
        "partial_rotary_factor": (None, 1.0, 1),
        "use_mrope": (None, False),
        "dual_chunk_attention_config": (None,),
    }

    max_position_embeddings: PositiveInt = 32768
    intermediate_size: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    head_dim: PositiveInt | None = None
    hidden_act: str = "silu"
    rms_norm_eps: PositiveFloat = 1e-6
    tie_word_embeddings: bool = False
    use_sliding_window: bool = False
    sliding_window: Annotated[int, Field(ge=0)] | None = None
    max_window_layers: Annotated[int, Field(ge=0)] = 28
    layer_types: list[Literal["full_attention", "sliding_attention"]] | None = None

    @property
    def head(self) -> int:
        """Features of one attention head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

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
    def _default_kv_heads(cls, raw: Any) -> Any:
        if isinstance(raw, Mapping) and "num_key_value_heads" in raw and raw["num_key_value_heads"] is None:
            return {**raw, "num_key_value_heads": raw.get("num_attention_heads")}
        return raw

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
                f"is {self.rope.partial_rotary_factor}; Qwen rotates whole heads",
            )
        return self

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
