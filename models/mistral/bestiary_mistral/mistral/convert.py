"""Weight maps of Mistral, and what its GGUF's metadata means."""

from __future__ import annotations

from typing import Any

from bestiary.converters import GGUF as GGUFFile
from bestiary.converters import WeightMap, permute_rope
from bestiary_mistral.gguf import dense_config, keys_of, wrong

L, M, B = "layers.{}", "model.layers.{}", "blk.{}"

HF = WeightMap(
    {
        "embed": "model.embed_tokens",
        f"{L}.attention_norm": f"{M}.input_layernorm",
        f"{L}.attention.q": f"{M}.self_attn.q_proj",
        f"{L}.attention.k": f"{M}.self_attn.k_proj",
        f"{L}.attention.v": f"{M}.self_attn.v_proj",
        f"{L}.attention.o": f"{M}.self_attn.o_proj",
        f"{L}.mlp_norm": f"{M}.post_attention_layernorm",
        f"{L}.mlp.gate": f"{M}.mlp.gate_proj",
        f"{L}.mlp.up": f"{M}.mlp.up_proj",
        f"{L}.mlp.down": f"{M}.mlp.down_proj",
        "norm": "model.norm",
        "head": "lm_head",
    },
    drop=(f"{M}.self_attn.rotary_emb.inv_freq",),
)

GGUF = WeightMap(
    {
        "embed": "token_embd",
        f"{L}.attention_norm": f"{B}.attn_norm",
        f"{L}.attention.q": permute_rope(f"{B}.attn_q", heads="num_attention_heads"),
        f"{L}.attention.k": permute_rope(f"{B}.attn_k", heads="num_key_value_heads"),
        f"{L}.attention.v": f"{B}.attn_v",
        f"{L}.attention.o": f"{B}.attn_output",
        f"{L}.mlp_norm": f"{B}.ffn_norm",
        f"{L}.mlp.gate": f"{B}.ffn_gate",
        f"{L}.mlp.up": f"{B}.ffn_up",
        f"{L}.mlp.down": f"{B}.ffn_down",
        "norm": "output_norm",
        "head": "output",
    },
    drop=("rope_freqs",),
)


def gguf_config(file: GGUFFile) -> dict[str, Any]:
    """The object of config.json for a GGUF of architecture ``mistral3``, the dense models without temperature scaling.

    Raises:
        DataError: a key is missing, or says what Mistral does not do.
    """
    experts = keys_of(file).get("expert_count", 0)
    if experts:
        raise wrong(file, "expert_count", "changes the mathematics in a way Mistral does not implement", experts, "0")
    return dense_config(file, "mistral")
