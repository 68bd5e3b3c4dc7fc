"""A model plugin drafted from a Hugging Face directory: config.json and the headers of its weights, no data."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bestiary.converters.hf import read_config
from bestiary.core.checkpoint.weights import Weights
from bestiary.core.config import SILENT, ModelConfig
from bestiary.core.errors import BestiaryError, ConfigError, MissingInputError
from bestiary.core.rope import ROPE_KEYS, fold_rope
from bestiary.core.scaffold import tiny
from bestiary.core.scaffold.defaults import Defaults, defaults_of
from bestiary.core.scaffold.features import Features
from bestiary.core.scaffold.known_classes import lacking
from bestiary.core.scaffold.sizes import Sizes, spelled
from bestiary.core.scaffold.tensors import Placement, kv_heads, operations, place, rows, source

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,79}")
_KV = "num_key_value_heads"
# Keys that say nothing about what a forward pass computes, beside those that every config ignores.
_HARMLESS = frozenset(
    [
        "auto_map",
        "dtype",
        "id2label",
        "classifier_dropout",
        "cache_implementation",
        "label2id",
        "layer_norm_eps",
        "max_window_layers",
        "num_labels",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "problem_type",
        "return_dict",
        "rope_theta",
        "router_aux_loss_coef",
        "router_jitter_noise",
        "sep_token_id",
        "cls_token_id",
        "decoder_start_token_id",
        "torch_dtype",
        "vocab_size",
        "chunk_size_feed_forward",
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
        "task_specific_params",
    ]
)


@dataclass(frozen=True)
class Draft:
    """What a directory's files say of the plugin to write.

    Args:
        name, architecture: model_type and class, None where config.json does not name them in a usable way.
        values: the template's ``_draft``.
        placed, total: tensors.
        left: what a person has to look at, a sentence each, in markdown.
        defaults: what the draft takes for keys that config.json leaves out, and from where; likewise.
    """

    name: str | None
    architecture: str | None
    values: dict[str, Any]
    placed: int
    total: int
    left: list[str]
    defaults: list[str]


def draft(directory: Path, architecture: str | None = None) -> Draft:
    """Read the files and fill in the template's values.

    Args:
        directory: holds config.json and safetensors.
        architecture: what the plugin is to serve, where that is not the class that config.json names.

    Raises:
        MissingInputError: there is no such directory, or it holds no weights.
        ConfigError, DataError: config.json or a header is damaged.
    """
    if not directory.is_dir():
        raise MissingInputError("E-NEW-FROM", directory.name or str(directory), "is not there, or is no directory")
    found = read_config(directory)
    tensors = {name: entry.shape for name, entry in Weights.open(directory).entries.items()}
    spellings = {key: field for key, field in spelled(found).items() if _KEY.fullmatch(key)}
    raw = {spellings.get(key, key): value for key, value in found.items()}
    named = _class(found)
    known = defaults_of(found, named)
    counted = None if _KV in raw else kv_heads(tensors, Sizes.of(raw))
    told = _counted(counted, known)
    if counted is not None:
        raw[_KV], known = counted, replace(known, values={**known.values, _KV: counted})
        found = {**found, _KV: counted}
    placement = place(tensors, Sizes.of(raw))
    features = Features.of(raw, placement, known)
    left = [*told, *_tensors(placement), *_layers(raw, placement), *features.left, *_keys(raw, features)]
    without = lacking(named) if named is not None else None
    left += _reference(found, named, architecture, without)
    values = {
        "source": re.sub(r"[^A-Za-z0-9._-]", "_", directory.resolve().name),
        "left": left,
        "defaults": features.defaults,
        "spellings": sorted((spellings | features.spellings).items()),
        "prefix": placement.prefix,
        "rows": rows(placement),
        "drop": [source(name, placement) for name in placement.drop],
        "operations": operations(placement),
        "reference": named if without is None and architecture not in (None, named) else None,
        "unwritten": None if without is None else f"{without} has no {named}",
        "configs": [("tiny", tiny.config(found, spellings))],
        "facts": _facts(raw, features, placement),
        **features.values,
    }
    return Draft(
        _text(found.get("model_type")), named, values, placement.placed, placement.total, left, features.defaults
    )


def _counted(count: int | None, known: Defaults) -> list[str]:
    """Key-value heads that only the tensors tell, where the config class would not take as many."""
    if count is None or known.values.get(_KV) in (None, count):
        return []
    return [
        f"key `{_KV}`: config.json leaves it out; the tensors say {count}, which the draft takes, and {known.source} takes "
        f"`{known.values[_KV]}`"
    ]


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and _KEY.fullmatch(value) else None


def _class(raw: Mapping[str, Any]) -> str | None:
    named = raw.get("architectures")
    name = _text(named[0]) if isinstance(named, list) and len(named) == 1 else None
    return None if name is None or keyword.iskeyword(name) else name


def _reference(raw: Mapping[str, Any], named: str | None, architecture: str | None, without: str | None) -> list[str]:
    """What to know of the model that conformance.py compares with: transformers may lack the plugin's architecture.

    Args:
        without: the transformers that lacks the class of that name.
    """
    if named is None:
        said = raw.get("architectures")
        why = (
            "" if said is None else f"config.json's architectures = `{_short(said)}` names no class of a usable name; "
        )
        return [
            f"`reference` in conformance.py: {why}write it if transformers has no class of this plugin's architecture"
        ]
    if without is not None:
        return [f"`reference` in conformance.py: write it, from the model's own source; {without} has no `{named}`"]
    if architecture in (None, named):
        return []
    return [
        f"`reference` in conformance.py: it is transformers' `{named}`, which config.json names; "
        f"write another if `{architecture}` computes something else, or if transformers has no `{named}`"
    ]


def _tensors(placement: Placement) -> list[str]:
    found = []
    for one in placement.left:
        many = f"{one.tensors} tensors, each " if one.tensors > 1 else ""
        found.append(f"tensor `{one.name}` ({many}{list(one.shape)}): {one.reason}")
    needed = {"embed", "norm", "attention.o"}
    if "attention" not in placement.modules:
        needed |= {"attention.q", "attention.k", "attention.v"}
    if "moe.experts.gate" in placement.modules:
        needed |= {"moe.router", "moe.experts.up", "moe.experts.down"}
    else:
        needed |= {"mlp.down"} | (set() if "mlp" in placement.modules else {"mlp.gate", "mlp.up"})
    missing = sorted(needed - set(placement.modules))
    return found + [f"module `{role}` of model.py: no tensor was recognised as its weight" for role in missing]


def _layers(raw: Mapping[str, Any], placement: Placement) -> list[str]:
    said, found = raw.get("num_hidden_layers"), set[int]().union(*placement.layers.values())
    if type(said) is not int or not found or said == len(found) == max(found) + 1:
        return []
    return [f"key `num_hidden_layers` = `{_short(said)}`: the weights have {len(found)} layers"]


def _keys(raw: Mapping[str, Any], features: Features) -> list[str]:
    """Keys of config.json that the drafted config refuses, or that nothing reads."""
    read = {*features.read, *SILENT, *_HARMLESS, *ROPE_KEYS, "quantization_config"}
    neutral = ModelConfig.neutral
    found = []
    try:
        fold_rope(raw, 10000.0)
    except ConfigError as error:
        found.append(f"rope: {_clean(error)}")
    for key, value in raw.items():
        if not _KEY.fullmatch(key) or key in read:
            continue
        if key in neutral and value not in neutral[key]:
            found.append(
                f"key `{key}` = `{_short(value)}`: it changes the mathematics, and config.py refuses it for now"
            )
        elif key not in neutral and value is not None:
            found.append(f"key `{key}` = `{_short(value)}`: nothing reads it")
    if raw.get("quantization_config") is not None:
        found.append("key `quantization_config`: quantized weights are not read; draft from the unquantized model")
    if "auto_map" in raw:
        found.append(
            "key `auto_map`: the model's code is its own; if transformers has no such class, give conformance.py a `reference`"
        )
    return found


def _facts(raw: Mapping[str, Any], features: Features, placement: Placement) -> list[tuple[str, str]]:
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    more = ("num_key_value_heads", "head_dim", "max_position_embeddings")
    said = [(key, str(raw[key])) for key in (*sizes, *more) if type(raw.get(key)) is int]
    placed = [("tensors placed", f"{placement.placed} of {placement.total}")]
    return said + features.facts + placed


def _clean(error: BestiaryError) -> str:
    return " ".join(error.args[0].split()).replace("`", "'")


def _short(value: Any) -> str:
    text = " ".join(repr(value).split()).replace("`", "'")
    return text if len(text) <= 60 else text[:57] + "..."
