"""Which configs of transformers' causal models can be run, and what bestiary must know of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from bestiary import ConfigError
from bestiary.spec import ModelConfig, Rope

#: What every refusal of another kind of model ends with.
ONLY = "bestiary runs causal decoders with paged attention only"
# Keys that the base class checks or folds.
_PASSED = ("dtype", "torch_dtype", "quantization_config")


def why_not(architecture: str, model_type: str | None) -> str | None:
    """None where transformers has a causal model of this name, else why it can't be run."""
    from transformers import __version__
    from transformers.models.auto import modeling_auto as auto

    if auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type) != architecture:
        if _listed(auto, architecture, model_type):
            return f"transformers {__version__} knows it, but not as a causal language model, and {ONLY}"
        return f"transformers {__version__} has no model of this name and model_type"
    if model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return "it is an encoder or has one, and the fallback runs decoders only"
    return None


def _listed(auto: Any, architecture: str, model_type: str | None) -> bool:
    """Whether transformers has the class for any task at all."""
    tables = (getattr(auto, name) for name in dir(auto) if name.endswith("_MAPPING_NAMES"))
    found = (table.get(model_type) for table in tables)
    return any(architecture in (one if isinstance(one, (tuple, list)) else (one,)) for one in found)


class TransformersConfig(ModelConfig):
    """Any config that transformers reads: the sizes bestiary asks for, and the whole as found."""

    raw: dict[str, Any]

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Self:
        found = foreign_config(raw)
        return super().parse(
            {
                **{key: raw[key] for key in _PASSED if key in raw},
                "vocab_size": found.vocab_size,
                "hidden_size": found.hidden_size,
                "num_hidden_layers": found.num_hidden_layers,
                "max_position_embeddings": _longest(found),
                "rope": Rope(),  # transformers' module turns positions itself
                "raw": dict(raw),
            }
        )


def foreign_config(raw: Mapping[str, Any]) -> Any:
    """transformers' own config object.

    Raises:
        ConfigError: it refuses the values, or they describe what this fallback does not run.
    """
    from transformers import CONFIG_MAPPING

    names = raw.get("architectures") or [None]
    if (reason := why_not(names[0], raw.get("model_type"))) is not None:
        raise cannot("field architectures", reason)
    try:
        found = CONFIG_MAPPING[raw["model_type"]].from_dict(dict(raw))
        sizes = [getattr(found, name, None) for name in ("vocab_size", "hidden_size", "num_hidden_layers")]
        text = found.get_text_config()
    except Exception as error:
        raise cannot(
            "field model_type", f"transformers can't read this config: {type(error).__name__}: {error}"
        ) from error
    if found.is_encoder_decoder:
        raise cannot("field is_encoder_decoder", f"{names[0]} has an encoder, and the fallback runs decoders only")
    if text is not found:
        raise cannot("field model_type", f"{names[0]} is more than a language model, and the fallback runs text only")
    if not all(isinstance(size, int) for size in sizes):
        raise cannot("field model_type", f"{names[0]} does not tell one vocab_size, hidden_size and num_hidden_layers")
    return found


def _longest(found: Any) -> int:
    """Most tokens of a sequence. Beyond the original length some ropes turn all keys anew, which a cache can't follow."""
    longest = getattr(found, "max_position_embeddings", None) or getattr(found, "seq_length", None) or 2048
    rope = getattr(found, "rope_parameters", None) or {}
    kinds = rope.values() if rope and all(isinstance(value, dict) for value in rope.values()) else [rope]
    for one in kinds:
        if one.get("rope_type") in ("dynamic", "longrope"):
            longest = min(longest, one.get("original_max_position_embeddings") or longest)
    return int(longest)


def cannot(subject: str, problem: str, hint: str = "write a model plugin for it") -> ConfigError:
    """The refusal of a config, for a field or an architecture."""
    problem = f"the fallback transformers can't run it: {problem}"
    return ConfigError("E-CFG-FALLBACK", f"config.json, {subject}", problem, hint=hint)
