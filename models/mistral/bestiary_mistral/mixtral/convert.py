"""Weight maps of Mixtral, and what its GGUF's metadata means."""

from __future__ import annotations

from typing import Any

from bestiary.converters import GGUF as GGUFFile
from bestiary.converters import WeightMap, permute_rope, stack_experts
from bestiary_mistral.gguf import dense_config, keys_of, needed

L, M, B = "layers.{}", "model.layers.{}", "blk.{}"

HF = WeightMap(
    {
        "embed": "model.embed_tokens",
        f"{L}.attention_norm": f"{M}.input_layernorm",
        f"{L}.attention.q": f"{M}.self_attn.q_proj",
        f"{L}.attention.k": f"{M}.self_attn.k_proj",
        f"{L}.attention.v": f"{M}.self_attn.v_proj",
        f"{L}.attention.o": f"{M}.self_attn.o_proj",
        f"{L}.moe_norm": f"{M}.post_attention_layernorm",
        f"{L}.moe.router": f"{M}.block_sparse_moe.gate",
        f"{L}.moe.experts.gate": stack_experts(f"{M}.block_sparse_moe.experts.{{}}.w1.weight"),
        f"{L}.moe.experts.up": stack_experts(f"{M}.block_sparse_moe.experts.{{}}.w3.weight"),
        f"{L}.moe.experts.down": stack_experts(f"{M}.block_sparse_moe.experts.{{}}.w2.weight"),
        "norm": "model.norm",
        "head": "lm_head",
    },
    drop=(f"{M}.self_attn.rotary_emb.inv_freq",),
)


def _experts(name: str) -> Any:
    """One tensor for all experts; files of 2023 have one for each."""
    return (f"{B}.{name}_exps.weight", stack_experts(f"{B}.{name}.{{}}.weight"))


GGUF = WeightMap(
    {
        "embed": "token_embd",
        f"{L}.attention_norm": f"{B}.attn_norm",
        f"{L}.attention.q": permute_rope(f"{B}.attn_q", heads="num_attention_heads"),
        f"{L}.attention.k": permute_rope(f"{B}.attn_k", heads="num_key_value_heads"),
        f"{L}.attention.v": f"{B}.attn_v",
        f"{L}.attention.o": f"{B}.attn_output",
        f"{L}.moe_norm": f"{B}.ffn_norm",
        f"{L}.moe.router": f"{B}.ffn_gate_inp",
        f"{L}.moe.experts.gate": _experts("ffn_gate"),
        f"{L}.moe.experts.up": _experts("ffn_up"),
        f"{L}.moe.experts.down": _experts("ffn_down"),
        "norm": "output_norm",
        "head": "output",
    },
    drop=("rope_freqs",),
)


def gguf_config(file: GGUFFile) -> dict[str, Any]:
    """The object of config.json for a GGUF of architecture ``llama`` with experts.

    Raises:
        DataError: a key is missing, or says what Mixtral does not do.
    """
    keys = keys_of(file)
    return dense_config(file, "mixtral") | {
        "num_local_experts": needed(file, keys, "expert_count"),
        "num_experts_per_tok": needed(file, keys, "expert_used_count"),
    }
