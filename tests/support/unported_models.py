"""Small random models of architectures that nobody has ported, as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

SMALL = {
    "vocab_size": 96,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT = {
    "vocab_size": 96,
    "n_embd": 48,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**SMALL, "intermediate_size": 80, "num_key_value_heads": 2}

#: By what is special about them.
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": GPT,  # learned positions, a tied head
    "gpt_neox": {**SMALL, "intermediate_size": 80, "rotary_pct": 0.25},  # other names in files than in the module
    "gemma2": {**GROUPED, "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16},  # windows, soft-capping
    "bloom": {"vocab_size": 96, "hidden_size": 48, "n_layer": 2, "n_head": 4},  # ALiBi, no length of its own
    "falcon": {**SMALL, "alibi": False, "multi_query": True, "new_decoder_architecture": False},  # one key-value head
    "olmoe": {**SMALL, "intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2},  # experts, one in a file
    "apertus": {**GROUPED, "max_position_embeddings": 128},  # parameters of no dimensions
    "deepseek_v3": {  # keys and values of different sizes, a stored buffer
        **SMALL, "intermediate_size": 80, "moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "n_group": 1, "topk_group": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8, "v_head_dim": 12, "first_k_dense_replace": 1,
    },
}  # fmt: skip


def save(directory: Path, name: str, **changes: Any) -> Any:
    """A random model of a ``model_type``, saved at ``directory/hf``."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(0)
    config = CONFIG_MAPPING[name](**{**CONFIGS[name], **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms of 1 and biases of 0 would hide that they are not applied
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(directory / "hf")
    return model


def tokens(count: int, seed: int = 1) -> list[int]:
    return torch.randint(3, 96, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
