"""The weight map of Ministral, which llama.cpp does not know."""

from bestiary.converters import WeightMap

L, M = "layers.{}", "model.layers.{}"

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
