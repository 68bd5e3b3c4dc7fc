"""What the metadata of a Mistral's GGUF means in the spelling of config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bestiary import DataError
from bestiary.converters import GGUF

_FIELDS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
# Keys that change the mathematics, with the values that do not.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.temperature_scale": (0.0,),
    "logit_scale": (1.0,),
    "rope.scaling.type": ("none",),
    "rope.scale_linear": (1.0,),
}


def keys_of(file: GGUF) -> dict[str, Any]:
    """The file's keys below its architecture's name."""
    prefix = f"{file.metadata['general.architecture']}."
    return {key.removeprefix(prefix): value for key, value in file.metadata.items() if key.startswith(prefix)}


def dense_config(file: GGUF, model_type: str) -> dict[str, Any]:
    """What all architectures of the family say alike.

    Raises:
        DataError: a key is missing, or says what this family does not do.
    """
    keys = keys_of(file)
    for key, neutral in _NEUTRAL.items():
        if keys.get(key, neutral[0]) not in neutral:
            problem = "changes the mathematics in a way this family does not implement"
            raise wrong(file, key, problem, keys[key], str(neutral[0]))
    if any(value != 1.0 for value in _rope_factors(file)):
        raise DataError(
            "E-GGUF-ROPE",
            f"{file.name}, tensor rope_freqs.weight",
            "scales the rotary frequencies, which this family does not do",
            hint="convert the Hugging Face model instead",
        )
    config: dict[str, Any] = {"model_type": model_type}
    for field, key in _FIELDS.items():
        config[field] = needed(file, keys, key)
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise DataError("E-GGUF-MODEL", f"{file.name}, tensor token_embd.weight", "is missing or no matrix")
    return config | {
        "num_key_value_heads": keys.get("attention.head_count_kv", config["num_attention_heads"]),
        "head_dim": _head_dim(file, keys, config),
        "vocab_size": embedding.shape[0],
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "sliding_window": keys.get("attention.sliding_window") or None,
        "rope_theta": keys.get("rope.freq_base", 10000.0),
    }


def needed(file: GGUF, keys: Mapping[str, Any], key: str) -> Any:
    """The value of a key that must be there."""
    if key not in keys:
        raise wrong(file, key, "is missing")
    return keys[key]


def wrong(file: GGUF, key: str, problem: str, found: object = None, expected: str | None = None) -> DataError:
    """An error about one of the architecture's keys."""
    subject = f"{file.name}, key {file.metadata['general.architecture']}.{key}"
    shown = None if found is None else str(found)[:80]
    return DataError("E-GGUF-METADATA", subject, problem, found=shown, expected=expected)


def _head_dim(file: GGUF, keys: Mapping[str, Any], config: Mapping[str, Any]) -> int:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    if type(hidden) is not int or type(heads) is not int or heads < 1:
        raise wrong(file, "attention.head_count", "is not one number of heads", heads)
    head = keys.get("attention.key_length", keys.get("rope.dimension_count", hidden // heads))
    if type(head) is not int or head < 1:
        raise wrong(file, "attention.key_length", "is no size of a head", head)
    for key in ("attention.value_length", "rope.dimension_count"):
        if keys.get(key, head) != head:
            raise wrong(file, key, "differs from the size of a head", keys[key], str(head))
    return head


def _rope_factors(file: GGUF) -> list[float]:
    if "rope_freqs.weight" not in file.tensors:
        return []
    return [float(value) for value in file.read("rope_freqs.weight", "float32").reshape(-1)]
