"""What the metadata of a Qwen's GGUF means in the spelling of config.json."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from bestiary import DataError
from bestiary.converters import GGUF

_SIZES = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
}
# Keys that change the mathematics, with the values that do not.
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "attention.sliding_window": (0,),
    "attention.causal": (True,),
    "pooling_type": (0,),
    "logit_scale": (1.0,),
    "expert_group_count": (0, 1),
    "expert_weights_scale": (0.0, 1.0),
    "expert_gating_func": (0, 1),  # 1 is softmax
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (1.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
}
_YARN = {
    "factor": "rope.scaling.factor",
    "original_max_position_embeddings": "rope.scaling.original_context_length",
    "beta_fast": "rope.scaling.yarn_beta_fast",
    "beta_slow": "rope.scaling.yarn_beta_slow",
}


class Keys:
    """The metadata of one architecture, ``qwen3.block_count`` and so on; a missing or wrong one is named in full."""

    def __init__(self, file: GGUF, architecture: str) -> None:
        self.file, self.prefix = file, f"{architecture}."
        for key, neutral in _NEUTRAL.items():
            if self.get(key, neutral[0]) not in neutral:
                raise self.wrong(key, "changes the mathematics in a way this architecture does not have", neutral[0])

    def get(self, key: str, default: Any = None) -> Any:
        return self.file.metadata.get(self.prefix + key, default)

    def __getitem__(self, key: str) -> Any:
        if self.prefix + key not in self.file.metadata:
            raise self.wrong(key, "is missing")
        return self.file.metadata[self.prefix + key]

    def number(self, key: str, default: int | None = None) -> int:
        """A size or a count, which is at least 1."""
        value = self[key] if default is None else self.get(key, default)
        if type(value) is not int or value < 1:
            raise self.wrong(key, "is not one number above zero")
        return value

    def wrong(self, key: str, problem: str, expected: object = None) -> DataError:
        found = self.get(key)
        return DataError(
            "E-GGUF-METADATA",
            f"{self.file.name}, key {self.prefix}{key}",
            problem,
            found=None if found is None else str(found)[:80],
            expected=None if expected is None else str(expected),
        )


def dense_config(keys: Keys) -> dict[str, Any]:
    """What all architectures have in common, but for their biases.

    Raises:
        DataError: a key is missing, or says what no Qwen does.
    """
    file = keys.file
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise DataError("E-GGUF-MODEL", f"{file.name}, tensor token_embd.weight", "is missing or no matrix")
    sizes = {field: keys.number(key) for field, key in _SIZES.items()}
    return {
        **sizes,
        "num_key_value_heads": keys.get("attention.head_count_kv", sizes["num_attention_heads"]),
        "head_dim": _head(keys, sizes["hidden_size"] // sizes["num_attention_heads"]),
        "rms_norm_eps": keys["attention.layer_norm_rms_epsilon"],
        "vocab_size": embedding.shape[0],
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in file.tensors,
        **_rope(keys),
    }


def sparse_config(keys: Keys, *, normalizes: bool) -> dict[str, Any]:
    """The same, with experts in the layers that have no MLP.

    Args:
        normalizes: whether the architecture divides a token's weights by their sum, where the file does not say.
    """
    config, used = dense_config(keys), keys.number("expert_used_count")
    dense = [re.fullmatch(r"blk\.(\d+)\.ffn_gate\.weight", name) for name in keys.file.tensors]
    return {
        **config,
        "num_experts": keys.number("expert_count"),
        "num_experts_per_tok": used,
        # Old files leave this one out, and llama.cpp then divides.
        "moe_intermediate_size": keys.get("expert_feed_forward_length", config["intermediate_size"] // used),
        "norm_topk_prob": keys.get("expert_weights_norm", normalizes),
        "mlp_only_layers": sorted(int(match[1]) for match in dense if match),
    }


def _head(keys: Keys, default: int) -> int:
    head = keys.number("attention.key_length", default)
    for key in ("attention.value_length", "rope.dimension_count"):
        if keys.get(key, head) != head:
            raise keys.wrong(key, "differs from the size of a head", head)
    return head


def _rope(keys: Keys) -> dict[str, Any]:
    theta, kind = keys.get("rope.freq_base", 10000.0), keys.get("rope.scaling.type", "none")
    if kind == "none":
        return {"rope_theta": theta}
    if kind == "linear":
        return {"rope_theta": theta, "rope_scaling": {"rope_type": "linear", "factor": keys["rope.scaling.factor"]}}
    if kind != "yarn":
        raise keys.wrong("rope.scaling.type", "is not implemented", "none, linear or yarn")
    found = {name: keys.get(key) for name, key in _YARN.items()}
    scaling = {name: value for name, value in found.items() if value is not None}
    return {"rope_theta": theta, "rope_scaling": {"rope_type": "yarn", **scaling}}
