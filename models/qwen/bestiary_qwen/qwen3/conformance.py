"""What bestiary's conformance kit runs: a tiny config for each way in which Qwen3 models differ."""

from typing import Any

from bestiary.testing import ModelConformance

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Values that are nobody's default, so that one that is not read shows.
OTHER = {"rms_norm_eps": 0.01, "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0}}
WINDOW = {"use_sliding_window": True, "sliding_window": 7}
# As Qwen's model cards switch it on: max_position_embeddings stays what it was.
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]


class Qwen3Conformance(ModelConformance):
    model = "qwen3"
    configs = {  # noqa: RUF012
        "wide_heads": SMALL,
        "narrow_heads": {**SMALL, "head_dim": 8, "num_key_value_heads": 4},
        "biased": {**SMALL, "attention_bias": True},
        "yarn": {**SMALL, "max_position_embeddings": 64, "rope_parameters": YARN},
        "upper_windowed": {**SMALL, **WINDOW, "max_window_layers": 1, "layer_types": None},
        "layer_types": {**SMALL, **OTHER, **WINDOW, "layer_types": MIXED, "tie_word_embeddings": True},
    }
