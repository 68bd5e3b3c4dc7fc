"""What bestiary's conformance kit runs: a tiny config for each way in which Ministrals differ."""

from typing import Any

from bestiary.testing import ModelConformance

FULL, SLIDING = "full_attention", "sliding_attention"
SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "sliding_window": 13,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Values that are nobody's default, so that one that is not read shows.
OTHER = {"rms_norm_eps": 0.01, "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0}}


class MinistralConformance(ModelConformance):
    model = "ministral"
    configs = {  # noqa: RUF012
        "all_slide": SMALL,
        "none_slides": {**SMALL, "layer_types": [FULL] * 4},
        "wide_heads": {**SMALL, "head_dim": 22, "layer_types": [FULL, SLIDING, FULL, SLIDING]},
        "one_of_four_is_full": {
            **SMALL,
            **OTHER,
            "tie_word_embeddings": True,
            "layer_types": [SLIDING, SLIDING, SLIDING, FULL],
        },
    }
