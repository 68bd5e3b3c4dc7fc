"""One tiny configuration for each way in which Qwen3 models differ."""

from typing import Any

BASE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32}

CONFIGS: dict[str, dict[str, Any]] = {
    "wide-heads": BASE,
    "narrow-heads": {**BASE, "head_dim": 12, "num_key_value_heads": 4},
    "tied": {**BASE, "tie_word_embeddings": True},
    "biased": {**BASE, "attention_bias": True},
    "upper-layers-windowed": {**BASE, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2},
    "windowed-by-layer-types": {
        **BASE,
        "use_sliding_window": True,
        "sliding_window": 7,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    },
    "yarn": {**BASE, "max_position_embeddings": 32, "rope_parameters": YARN},
}
