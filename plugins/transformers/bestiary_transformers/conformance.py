"""What bestiary's conformance kit runs: tiny models of architectures that nobody has ported."""

from typing import Any

from bestiary.testing import ModelConformance

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = {**SMALL, "intermediate_size": 80, "num_key_value_heads": 2}


class TransformersConformance(ModelConformance):
    model = "transformers"
    configs = {  # noqa: RUF012
        "gpt2": {
            "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 96, "n_embd": 48, "n_layer": 3,
            "n_head": 4, "n_positions": 512, "bos_token_id": 1, "eos_token_id": 2,
        },
        "gpt_neox": {
            **SMALL, "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "intermediate_size": 80,
            "rotary_pct": 0.25,
        },
        "olmoe": {
            **SMALL, "architectures": ["OlmoeForCausalLM"], "model_type": "olmoe", "intermediate_size": 32,
            "num_experts": 4, "num_experts_per_tok": 2,
        },
        "gemma2": {
            **GROUPED, "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "head_dim": 16,
            "sliding_window": 8, "query_pre_attn_scalar": 16,
        },
    }  # fmt: skip
    waived = {  # noqa: RUF012
        "test_unknown_keys": "transformers keeps every key and knows what it means; none is listed as ignored",
        "test_impossible_keys": "which values are impossible is transformers' matter, and differs by architecture",
        "test_deterministic": "the fallback refuses it: the module is run as it is, and is not batch-invariant",
        "test_tensor_parallel": "the fallback refuses it: bestiary does not know the module's layers",
        "test_pipeline_parallel": "the fallback refuses it: bestiary does not know the module's layers",
        "test_quantization": "the fallback refuses it: bestiary does not know the module's layers",
        "test_quantized_cache": "the fallback refuses it: transformers' attention keeps the cache",
    }
