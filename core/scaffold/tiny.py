"""A tiny config of a family, from a large one: small sizes, and everything else as it is."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from bestiary.core.scaffold.sizes import EPSILONS, EXPERTS

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,79}")
LAYERS, WINDOW = 4, 20
_SIZES = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": LAYERS,
    "max_position_embeddings": 512,
    "moe_intermediate_size": 40,
    "shared_expert_intermediate_size": 56,
    "sliding_window": WINDOW,
    "max_window_layers": 2,
    "first_k_dense_replace": 1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "original_max_position_embeddings": 32,
    **dict.fromkeys(EXPERTS, 6),
}
# Of the full model, its training or its files; the kit gives architectures itself.
_DROPPED = frozenset(
    [
        "architectures",
        "model_type",
        "transformers_version",
        "_name_or_path",
        "torch_dtype",
        "dtype",
        "auto_map",
        "quantization_config",
        "pad_token_id",
        "unk_token_id",
        "sep_token_id",
        "cls_token_id",
        "id2label",
        "label2id",
        "task_specific_params",
        "use_cache",
    ]
)


def config(found: Mapping[str, Any], spellings: Mapping[str, str]) -> list[tuple[str, str]]:
    """Keys and their values as Python source.

    Args:
        found: the object of a config.json.
        spellings: its names for the zoo's fields.
    """
    heads = _heads(found, spellings)
    layers = next((value for key, value in found.items() if spellings.get(key, key) == "num_hidden_layers"), None)
    # Where config.json does not say it, transformers takes an id beyond a tiny vocabulary.
    made = [("pad_token_id", "None")]
    for key, value in found.items():
        if not _KEY.fullmatch(key) or key in _DROPPED or key == "pad_token_id":
            continue
        field = spellings.get(key, key)
        if _each_layer(field, value, layers):
            shrunk: Any = _layers(value)
        else:
            shrunk = heads[field] if field in heads else _shrunk(field, value)
        if (text := literal(shrunk)) is not None:
            made.append((key, text))
    return made


def _heads(found: Mapping[str, Any], spellings: Mapping[str, str]) -> dict[str, int]:
    """Four heads, and key-value heads for each, for all or for two, as in the model; features of a head where it says them."""
    said = {spellings.get(key, key): value for key, value in found.items()}
    heads, kv = said.get("num_attention_heads"), said.get("num_key_value_heads")
    tiny = {"num_attention_heads": 4}
    if type(kv) is int:
        tiny["num_key_value_heads"] = 4 if kv == heads else 1 if kv == 1 else 2
    of_head = 16 if type(said.get("head_dim")) is int else _SIZES["hidden_size"] // 4
    size = next((size for size in range(of_head, 257, 2) if _turns_pairs(size, found)), of_head)
    if type(said.get("head_dim")) is int:
        tiny["head_dim"] = size
    elif size != of_head:
        tiny["hidden_size"] = 4 * size
    return tiny


def _turns_pairs(size: int, found: Mapping[str, Any]) -> bool:
    """Whether the part of a head that a config.json says is rotated is whole pairs."""
    key = "partial_rotary_factor"
    places = [found, *(found.get(field) for field in ("rope_parameters", "rope_scaling"))]
    factors = [place[key] for place in places if isinstance(place, Mapping) and isinstance(place.get(key), float)]
    return all(size * factor >= 2 and size * factor % 2 == 0 for factor in factors)


def _shrunk(key: str, value: Any) -> Any:
    # Usual values would not show that a model does not read them.
    if key in EPSILONS and isinstance(value, float):
        return 0.01
    if key == "rope_theta" and value == 10000:
        return 50000.0
    if key == "mlp_only_layers" and isinstance(value, list):
        return [0] if value else []
    if key == "num_experts_per_tok":
        return 2
    if key == "decoder_sparse_step" and type(value) is int:
        return min(value, 2)
    if isinstance(value, Mapping):
        return {inner: _shrunk(inner, one) for inner, one in value.items() if isinstance(inner, str)}
    # A switch, a null and a fraction are not sizes.
    return _SIZES[key] if key in _SIZES and type(value) is int else value


def _each_layer(key: str, value: Any, layers: Any) -> bool:
    """Whether it is a list that says something of each layer; one of token ids may have that length too."""
    if not isinstance(value, list) or key == "mlp_only_layers":
        return False
    return key == "layer_types" or (len(value) == layers and not key.endswith("_token_id"))


def _layers(value: list[Any]) -> list[Any]:
    """So many of them, every kind among them."""
    kinds = list(dict.fromkeys(one for one in value if isinstance(one, str | int | float)))
    return [kinds[index % len(kinds)] for index in range(LAYERS)] if kinds else []


def literal(value: Any, indent: str = " " * 12) -> str | None:
    """A JSON value as Python source in double quotes; None where it holds what no config needs to.

    Args:
        indent: of the line that it stands on.
    """
    if value is None or isinstance(value, bool | int):
        return repr(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else None
    if isinstance(value, str):
        return f'"{value}"' if re.fullmatch(r"[A-Za-z0-9_.\-/]{0,80}", value) else None
    if isinstance(value, list) and len(value) <= 16:
        parts = [literal(one, indent + "    ") for one in value]
        return None if None in parts else _inside("[]", [part for part in parts if part], indent)
    if isinstance(value, Mapping):
        pairs = {key: literal(one, indent + "    ") for key, one in value.items() if _KEY.fullmatch(str(key))}
        return _inside("{}", [f'"{key}": {text}' for key, text in pairs.items() if text is not None], indent)
    return None


def _inside(brackets: str, parts: list[str], indent: str) -> str:
    """On one line where a formatter would leave it there: a short list."""
    line = ", ".join(parts)
    if not parts or (brackets == "[]" and len(line) < 60):
        return f"{brackets[0]}{line}{brackets[1]}"
    return "\n".join([brackets[0], *(f"{indent}    {part}," for part in parts), indent + brackets[1]])
