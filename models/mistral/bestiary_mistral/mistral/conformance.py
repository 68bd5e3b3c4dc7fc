"""What bestiary's conformance kit runs: a tiny config for each way in which Mistrals differ."""

from typing import Any

from bestiary.testing import ModelConformance

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "sliding_window": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Values that are nobody's default, so that one that is not read shows.
OTHER = {"rms_norm_eps": 0.01, "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0}}


class MistralConformance(ModelConformance):
    model = "mistral"
    configs = {  # noqa: RUF012
        "no_window": SMALL,
        "wide_heads": {**SMALL, "head_dim": 22},  # Nemo's are not hidden / heads
        "rope_yarn": {
            **SMALL,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "original_max_position_embeddings": 64,
            },
        },
        "narrowest_window": {**SMALL, "sliding_window": 3},
        "tied_narrow_window": {**SMALL, **OTHER, "tie_word_embeddings": True, "sliding_window": 20},
    }
