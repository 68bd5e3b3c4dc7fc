"""Tiny random models of transformers' classes, saved as Hugging Face directories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
_LATENT = {"q_lora_rank": 32, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16}

#: Class, and what is special about the model → what its config has beside the sizes.
MODELS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {},
    "LlamaForCausalLM, biases": {"attention_bias": True, "mlp_bias": True},
    "MistralForCausalLM": {"sliding_window": 32, "head_dim": 32},
    "MixtralForCausalLM": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen2ForCausalLM": {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 2},
    "Qwen2MoeForCausalLM": {**_EXPERTS, "shared_expert_intermediate_size": 80, "decoder_sparse_step": 2},
    "Qwen3ForCausalLM": {"head_dim": 32},
    "Qwen3MoeForCausalLM": {**_EXPERTS, "norm_topk_prob": True, "head_dim": 32},
    "SeedOssForCausalLM": {"head_dim": 32},
    "Phi3ForCausalLM": {},
    "Phi3ForCausalLM, three quarters of a head rotated": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.75}
    },
    "SmolLM3ForCausalLM": {},
    "GraniteForCausalLM": {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "logits_scaling": 4.0},
    "GemmaForCausalLM": {"head_dim": 32},
    "Gemma2ForCausalLM": {"head_dim": 32, "sliding_window": 32},
    "Glm4ForCausalLM": {"head_dim": 32},
    "Olmo2ForCausalLM": {},
    "OlmoeForCausalLM": {"num_experts": 4, "num_experts_per_tok": 2},
    "Starcoder2ForCausalLM": {},
    "GPT2LMHeadModel": {"n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 512},
    "DeepseekV3ForCausalLM": {
        **_LATENT,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 48,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "num_key_value_heads": 4,
    },
}


def save(architecture: str, directory: Path) -> None:
    """A random model of the class, at ``directory``."""
    import torch
    import transformers

    made = getattr(transformers, architecture.partition(",")[0])
    sizes = {"vocab_size": 320, "bos_token_id": 1, "eos_token_id": 2} if architecture.startswith("GPT2") else _SIZES
    torch.manual_seed(0)
    made(made.config_class(**{**sizes, **MODELS[architecture]})).save_pretrained(directory)
