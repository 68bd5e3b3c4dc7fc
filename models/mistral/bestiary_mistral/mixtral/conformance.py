"""What bestiary's conformance kit runs: a tiny config for each way in which Mixtrals differ."""

from typing import Any

from bestiary.testing import ModelConformance

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Values that are nobody's default, so that one that is not read shows.
OTHER = {"rms_norm_eps": 0.01, "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0}}


class MixtralConformance(ModelConformance):
    model = "mixtral"
    configs = {  # noqa: RUF012
        "two_of_four": SMALL,
        "one_of_four": {**SMALL, "num_experts_per_tok": 1},
        "all_three": {**SMALL, "num_local_experts": 3, "num_experts_per_tok": 3},
        "window_and_wide_heads": {**SMALL, **OTHER, "sliding_window": 20, "head_dim": 22, "tie_word_embeddings": True},
    }
