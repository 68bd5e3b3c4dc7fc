"""Weight maps of Qwen3, and its GGUF's config."""

from typing import Any

from bestiary.converters import GGUF as GGUFFile
from bestiary.converters import WeightMap

from ..gguf import Keys, dense_config

L, M, B = "layers.{}", "model.layers.{}", "blk.{}"

HF = WeightMap(
    {
        "embed": "model.embed_tokens",
        f"{L}.attention_norm": f"{M}.input_layernorm",
        f"{L}.attention.q": f"{M}.self_attn.q_proj",
        f"{L}.attention.k": f"{M}.self_attn.k_proj",
        f"{L}.attention.v": f"{M}.self_attn.v_proj",
        f"{L}.attention.o": f"{M}.self_attn.o_proj",
        f"{L}.attention.q_norm": f"{M}.self_attn.q_norm",
        f"{L}.attention.k_norm": f"{M}.self_attn.k_norm",
        f"{L}.mlp_norm": f"{M}.post_attention_layernorm",
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
        f"{L}.attention.q_norm": f"{B}.attn_q_norm",
        f"{L}.attention.k_norm": f"{B}.attn_k_norm",
        f"{L}.mlp_norm": f"{B}.ffn_norm",
        f"{L}.mlp.gate": f"{B}.ffn_gate",
        f"{L}.mlp.up": f"{B}.ffn_up",
        f"{L}.mlp.down": f"{B}.ffn_down",
        "norm": "output_norm",
        "head": "output",
    }
)


def gguf_config(file: GGUFFile) -> dict[str, Any]:
    """The object of config.json for a GGUF of architecture ``qwen3``.

    Raises:
        DataError: a key is missing, or says what Qwen3 does not do.
    """
    biased = "blk.0.attn_q.bias" in file.tensors
    return {"model_type": "qwen3", "attention_bias": biased, **dense_config(Keys(file, "qwen3"))}
