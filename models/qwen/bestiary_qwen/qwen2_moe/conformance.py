"""What bestiary's conformance kit runs: a tiny config for each way in which Qwen2-MoE models differ."""

from typing import Any

from bestiary.testing import ModelConformance

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 40,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Values that are nobody's default, so that one that is not read shows.
OTHER = {"rms_norm_eps": 0.01, "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0}}
WINDOW = {"use_sliding_window": True, "sliding_window": 7}


class Qwen2MoeConformance(ModelConformance):
    model = "qwen2_moe"
    configs = {  # noqa: RUF012
        "all_sparse": SMALL,
        "renormalized": {**SMALL, "norm_topk_prob": True, "num_experts_per_tok": 3},
        "every_other_sparse": {**SMALL, "decoder_sparse_step": 2},
        "some_dense": {**SMALL, "mlp_only_layers": [1]},
        "windowed_unbiased": {
            **SMALL,
            **WINDOW,
            **OTHER,
            "max_window_layers": 2,
            "layer_types": None,
            "mlp_only_layers": [0],
            "qkv_bias": False,
            "tie_word_embeddings": True,
        },
    }
