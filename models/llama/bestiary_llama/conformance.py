"""What bestiary's conformance kit runs: a tiny config for each way in which Llamas differ."""

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
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Values that are nobody's default, so that one that is not read shows.
OTHER = {"rms_norm_eps": 0.01, "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0}}


def _rope(kind: str, **said: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, **said}}


class LlamaConformance(ModelConformance):
    model = "llama"
    configs = {  # noqa: RUF012
        "gqa": SMALL,
        "mha": {**SMALL, "num_key_value_heads": 4},
        "mqa": {**SMALL, "num_key_value_heads": 1},
        "odd_heads": {**SMALL, "num_attention_heads": 3, "num_key_value_heads": 3},
        "tied": {**SMALL, "tie_word_embeddings": True},
        "odd_head_dim": {**SMALL, "head_dim": 22},
        "rope_linear": {**SMALL, **_rope("linear")},
        "rope_dynamic": {**SMALL, "max_position_embeddings": 32, **_rope("dynamic")},
        "rope_llama3": {
            **SMALL,
            **_rope(
                "llama3",
                rope_theta=500000.0,
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=32,
            ),
        },
        "rope_yarn": {**SMALL, **_rope("yarn", factor=8.0, original_max_position_embeddings=64)},
        "biased": {**SMALL, **OTHER, "attention_bias": True, "mlp_bias": True},
    }
