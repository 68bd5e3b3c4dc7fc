"""The sizes that a config.json gives, in whatever spelling, and the shapes that follow from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Shape = tuple[int, ...]

#: A field of the zoo's configs → what other families call it.
SPELLINGS = {
    "hidden_size": ("n_embd", "d_model", "dim"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads"),
    "num_key_value_heads": ("n_kv_heads", "num_kv_heads"),
    "intermediate_size": ("n_inner", "ffn_dim", "ffn_hidden_size"),
    "max_position_embeddings": ("n_positions", "n_ctx", "max_seq_len", "max_sequence_length"),
    "hidden_act": ("hidden_activation", "activation_function"),
}
#: What configs call the epsilon of their norms.
EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon")
#: Switches of biases → the parts they are of.
BIASES = {
    "attention_bias": ("qkv",),
    "attention_in_bias": ("qkv",),
    "qkv_bias": ("qkv",),
    "attention_out_bias": ("output",),
    "attention_output_bias": ("output",),
    "mlp_bias": ("mlp",),
    "use_bias": ("qkv", "output", "mlp"),
}
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
EXPERT_SIZES = ("moe_intermediate_size", "intermediate_size")


def spelled(raw: Mapping[str, Any]) -> dict[str, str]:
    """Keys of a config.json that mean a field by another name → the field."""
    return {
        other: field
        for field, others in SPELLINGS.items()
        if raw.get(field) is None
        for other in others
        if raw.get(other) is not None
    }


def first(raw: Mapping[str, Any], keys: tuple[str, ...]) -> str | None:
    """The first of the keys that a config.json has."""
    return next((key for key in keys if raw.get(key) is not None), None)


@dataclass(frozen=True)
class Sizes:
    """A model's sizes; None where config.json does not say them as a number."""

    vocabulary: int | None
    hidden: int | None
    heads: int | None
    kv_heads: int | None
    head: int | None
    features: int | None
    experts: int | None
    expert_features: int | None
    shared_features: int | None

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Sizes:
        """The sizes in a config.json whose spellings are the zoo's."""
        hidden, heads = _number(raw, "hidden_size"), _number(raw, "num_attention_heads")
        features, expert = _number(raw, "intermediate_size"), _number(raw, first(raw, EXPERT_SIZES))
        shared = _number(raw, "shared_expert_intermediate_size")
        count = _number(raw, "n_shared_experts")
        return cls(
            _number(raw, "vocab_size"),
            hidden,
            heads,
            _number(raw, "num_key_value_heads") or heads,
            _number(raw, "head_dim") or (hidden // heads if hidden and heads else None),
            features,
            _number(raw, first(raw, EXPERTS)),
            expert,
            shared or (count * expert if count and expert else None),
        )

    def shape(self, role: str) -> Shape | None:
        """The shape of a role's weight; None where a size is unknown."""
        h, f, e, s = self.hidden, self.features, self.expert_features, self.shared_features
        shapes: dict[str, tuple[int | None, ...]] = {
            "embed": (self.vocabulary, h),
            "head": (self.vocabulary, h),
            "attention": (_times(_plus(self.heads, self.kv_heads, self.kv_heads), self.head), h),
            "attention.q": (_times(self.heads, self.head), h),
            "attention.k": (_times(self.kv_heads, self.head), h),
            "attention.v": (_times(self.kv_heads, self.head), h),
            "attention.o": (h, _times(self.heads, self.head)),
            "attention.q_norm": (self.head,),
            "attention.k_norm": (self.head,),
            "mlp": (_times(2, f), h),
            "mlp.gate": (f, h),
            "mlp.up": (f, h),
            "mlp.down": (h, f),
            "moe.router": (self.experts, h),
            "moe.experts.gate": (e, h),
            "moe.experts.up": (e, h),
            "moe.experts.down": (h, e),
            "moe.shared_gate": (1, h),
            "moe.shared.gate": (s, h),
            "moe.shared.up": (s, h),
            "moe.shared.down": (h, s),
        }
        sizes = shapes.get(role, (h,))  # the rest are norms over the features
        known = tuple(size for size in sizes if size is not None)
        return known if len(known) == len(sizes) else None


def _number(raw: Mapping[str, Any], key: str | None) -> int | None:
    value = raw.get(key) if key else None
    return value if type(value) is int and value > 0 else None


def _times(a: int | None, b: int | None) -> int | None:
    return a * b if a and b else None


def _plus(*parts: int | None) -> int | None:
    return None if None in parts else sum(part for part in parts if part)
