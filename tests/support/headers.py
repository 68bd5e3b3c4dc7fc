"""Hugging Face directories that are all header: config.json, and a safetensors file whose data is a hole."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write(directory: Path, config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> Path:
    """A directory with the tensors named, in float32, of which no byte is on the disk."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (directory / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return directory


def decoder(
    *,
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int,
    head: int,
    features: int,
    vocabulary: int,
    qk_norm: bool = False,
) -> dict[str, tuple[int, ...]]:
    """The tensors of a pre-norm decoder in today's usual names, with a head of its own."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(layers):
        name = f"model.layers.{layer}"
        shapes |= {
            f"{name}.input_layernorm.weight": (hidden,),
            f"{name}.self_attn.q_proj.weight": (heads * head, hidden),
            f"{name}.self_attn.k_proj.weight": (kv_heads * head, hidden),
            f"{name}.self_attn.v_proj.weight": (kv_heads * head, hidden),
            f"{name}.self_attn.o_proj.weight": (hidden, heads * head),
            f"{name}.post_attention_layernorm.weight": (hidden,),
            f"{name}.mlp.gate_proj.weight": (features, hidden),
            f"{name}.mlp.up_proj.weight": (features, hidden),
            f"{name}.mlp.down_proj.weight": (hidden, features),
        }
        if qk_norm:
            shapes |= {f"{name}.self_attn.{which}_norm.weight": (head,) for which in "qk"}
    return {**shapes, "model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}
