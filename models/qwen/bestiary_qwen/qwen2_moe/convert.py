"""Weight maps of Qwen2-MoE, and its GGUF's config."""

from typing import Any

from bestiary.converters import GGUF as GGUFFile
from bestiary.converters import WeightMap, stack_experts

from ..gguf import Keys, sparse_config

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
        f"{L}.moe.router": f"{M}.mlp.gate",
        f"{L}.moe.experts.gate": stack_experts(f"{M}.mlp.experts.{{}}.gate_proj.weight"),
        f"{L}.moe.experts.up": stack_experts(f"{M}.mlp.experts.{{}}.up_proj.weight"),
        f"{L}.moe.experts.down": stack_experts(f"{M}.mlp.experts.{{}}.down_proj.weight"),
        f"{L}.moe.shared_gate": f"{M}.mlp.shared_expert_gate",
        f"{L}.moe.shared.gate": f"{M}.mlp.shared_expert.gate_proj",
        f"{L}.moe.shared.up": f"{M}.mlp.shared_expert.up_proj",
        f"{L}.moe.shared.down": f"{M}.mlp.shared_expert.down_proj",
        f"{L}.mlp.gate": f"{M}.mlp.gate_proj",
        f"{L}.mlp.up": f"{M}.mlp.up_proj",
        f"{L}.mlp.down": f"{M}.mlp.down_proj",
        "norm": "model.norm",
        "head": "lm_head",
    }
)

GGUF = WeightMap(
    {
        "embed": "token_embd",
        f"{L}.attention_norm": f"{B}.attn_norm",
        f"{L}.attention.q": f"{B}.attn_q",
        f"{L}.attention.k": f"{B}.attn_k",
        f"{L}.attention.v": f"{B}.attn_v",
        f"{L}.attention.o": f"{B}.attn_output",
        f"{L}.mlp_norm": f"{B}.ffn_norm",
        f"{L}.moe.router": f"{B}.ffn_gate_inp",
        f"{L}.moe.experts.gate": f"{B}.ffn_gate_exps.weight",
        f"{L}.moe.experts.up": f"{B}.ffn_up_exps.weight",
        f"{L}.moe.experts.down": f"{B}.ffn_down_exps.weight",
        # A vector in most files, the only row of a matrix here and in some.
        f"{L}.moe.shared_gate": (stack_experts(f"{B}.ffn_gate_inp_shexp"), f"{B}.ffn_gate_inp_shexp"),
        f"{L}.moe.shared.gate": f"{B}.ffn_gate_shexp",
        f"{L}.moe.shared.up": f"{B}.ffn_up_shexp",
        f"{L}.moe.shared.down": f"{B}.ffn_down_shexp",
        f"{L}.mlp.gate": f"{B}.ffn_gate",
        f"{L}.mlp.up": f"{B}.ffn_up",
        f"{L}.mlp.down": f"{B}.ffn_down",
        "norm": "output_norm",
        "head": "output",
    }
)


def gguf_config(file: GGUFFile) -> dict[str, Any]:
    """The object of config.json for a GGUF of architecture ``qwen2moe``.

    Raises:
        DataError: a key is missing, or says what Qwen2-MoE does not do.
    """
    keys = Keys(file, "qwen2moe")
    config = sparse_config(keys, normalizes=False)
    # Old files leave this one out, and llama.cpp then takes the other length.
    shared = keys.get("expert_shared_feed_forward_length", config["intermediate_size"])
    biased = "blk.0.attn_q.bias" in file.tensors
    return {"model_type": "qwen2_moe", "shared_expert_intermediate_size": shared, "qkv_bias": biased, **config}
