"""Weight maps of the Llama family, and what a GGUF's metadata means in the spelling of config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from bestiary import DataError
from bestiary.converters import GGUF as GGUFFile
from bestiary.converters import WeightMap, permute_rope

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

# rope_freqs is dropped here because gguf_config turns it into the config's rope, or refuses it.
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

_FIELDS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
# Keys that change the mathematics, with the values that do not.
_NEUTRAL = {"expert_count": 0, "attention.sliding_window": 0, "attention.causal": True, "logit_scale": 1.0}


def gguf_config(file: GGUFFile) -> dict[str, Any]:
    """The object of config.json for a GGUF of architecture ``llama``.

    Raises:
        DataError: a key is missing, or says what this family does not do.
    """
    keys = {key.removeprefix("llama."): value for key, value in file.metadata.items() if key.startswith("llama.")}
    for key, neutral in _NEUTRAL.items():
        if keys.get(key, neutral) != neutral:
            problem = "changes the mathematics in a way Llama does not implement"
            hint = "pip install bestiary-mistral, whose Mixtral has experts" if key == "expert_count" else None
            raise _wrong(file, key, problem, keys[key], str(neutral), hint)
    config: dict[str, Any] = {"model_type": "llama"}
    for field, key in _FIELDS.items():
        if key not in keys:
            raise _wrong(file, key, "is missing")
        config[field] = keys[key]
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise DataError("E-GGUF-MODEL", f"{file.name}, tensor token_embd.weight", "is missing or no matrix")
    config |= {
        "num_key_value_heads": keys.get("attention.head_count_kv", config["num_attention_heads"]),
        "head_dim": _head_dim(file, keys, config),
        "vocab_size": embedding.shape[0],
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in file.tensors,
    }
    return {**config, **_rope(file, keys, config["head_dim"])}


def _wrong(
    file: GGUFFile,
    key: str,
    problem: str,
    found: object = None,
    expected: str | None = None,
    hint: str | None = None,
) -> DataError:
    shown = None if found is None else str(found)[:80]
    subject = f"{file.name}, key llama.{key}"
    return DataError("E-GGUF-METADATA", subject, problem, found=shown, expected=expected, hint=hint)


def _head_dim(file: GGUFFile, keys: Mapping[str, Any], config: Mapping[str, Any]) -> int:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    if type(hidden) is not int or type(heads) is not int or heads < 1:
        raise _wrong(file, "attention.head_count", "is not one number of heads", heads)
    rotated = keys.get("rope.dimension_count")
    head = keys.get("attention.key_length", hidden // heads if hidden % heads == 0 else rotated)
    if type(head) is not int or head < 1:
        raise _wrong(file, "attention.key_length", "is missing or wrong", head)
    for key in ("attention.value_length", "rope.dimension_count"):
        if keys.get(key, head) != head:
            raise _wrong(
                file, key, "differs from the size of a head, which Llama does not implement", keys[key], str(head)
            )
    return head


def _rope(file: GGUFFile, keys: Mapping[str, Any], head: int) -> dict[str, Any]:
    theta = keys.get("rope.freq_base", 10000.0)
    kind = keys.get("rope.scaling.type", "linear" if "rope.scale_linear" in keys else "none")
    scaling: dict[str, Any] | None = None
    if kind == "linear":
        factor = keys.get("rope.scaling.factor", keys.get("rope.scale_linear"))
        scaling = {"rope_type": "linear", "factor": factor}
    elif kind == "yarn":
        named = {
            "factor": "factor",
            "original_max_position_embeddings": "original_context_length",
            "beta_fast": "yarn_beta_fast",
            "beta_slow": "yarn_beta_slow",
        }
        found = {ours: keys.get(f"rope.scaling.{theirs}") for ours, theirs in named.items()}
        scaling = {"rope_type": "yarn", **{key: value for key, value in found.items() if value is not None}}
    elif kind != "none":
        raise _wrong(file, "rope.scaling.type", "is not implemented", kind, "none, linear or yarn")
    for key in ("rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_ext_factor"):
        if keys.get(key, 1.0) != 1.0:
            raise _wrong(file, key, "is not implemented", keys[key], "1.0")
    frequencies = file.tensors.get("rope_freqs.weight")
    if frequencies is not None:
        factors = [float(value) for value in file.read("rope_freqs.weight", "float32").reshape(-1)]
        if any(factor != 1.0 for factor in factors):
            if scaling is not None:
                raise _wrong(
                    file, "rope.scaling.type", "and the tensor rope_freqs.weight contradict each other", kind, "none"
                )
            scaling = _llama3(file, factors, float(theta), head)
    return {"rope_theta": theta} | ({"rope_scaling": scaling} if scaling else {})


def _llama3(file: GGUFFile, factors: list[float], theta: float, head: int) -> dict[str, Any]:
    """The llama3 scaling whose divisors of the frequencies are ``factors``; writers keep these and not their origin."""
    found = {"rope_type": "llama3", "factor": max(factors), "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    for original in (8192, 4096, 2048, 1024, 16384, 32768, 65536, 131072):
        expected = [_divisor(theta ** (-2 * i / head), max(factors), original) for i in range(head // 2)]
        if len(expected) == len(factors) and all(
            math.isclose(a, b, rel_tol=1e-4) for a, b in zip(expected, factors, strict=True)
        ):
            return {**found, "original_max_position_embeddings": original}
    raise DataError(
        "E-GGUF-ROPE",
        f"{file.name}, tensor rope_freqs.weight",
        "scales the rotary frequencies in a way that is not llama3's",
        found=f"{len(factors)} factors from {min(factors):g} to {max(factors):g}",
        expected=f"{head // 2} factors of llama3 with low_freq_factor 1 and high_freq_factor 4",
        hint="convert the Hugging Face model instead",
    )


def _divisor(frequency: float, factor: float, original: int, low: float = 1.0, high: float = 4.0) -> float:
    wavelength = 2 * math.pi / frequency
    if wavelength < original / high:
        return 1.0
    if wavelength > original / low:
        return factor
    smooth = (original / wavelength - low) / (high - low)
    return 1 / ((1 - smooth) / factor + smooth)
