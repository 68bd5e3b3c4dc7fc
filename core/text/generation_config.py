"""What a model says about generation: sampling defaults and the tokens that end an answer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bestiary.core.errors import ConfigError
from bestiary.core.text.files import read_json


def load_generation_config(directory: Path) -> dict[str, Any]:
    """generation_config.json of a model, checkpoint or engine directory.

    Where it names no end token, the model config's ``eos_token_id`` does, as in transformers.
    """
    found = read_json(directory / "generation_config.json")
    own = _model_config(directory).get("eos_token_id") if found.get("eos_token_id") is None else None
    return found if own is None else {**found, "eos_token_id": own}


def _model_config(directory: Path) -> dict[str, Any]:
    """The model config as a Hugging Face directory, a checkpoint or an engine holds it."""
    checkpoint = read_json(directory / "bestiary.json") or read_json(directory / "engine.json").get("checkpoint")
    config = checkpoint.get("config") if isinstance(checkpoint, dict) else None
    return config if isinstance(config, dict) else read_json(directory / "config.json")


def end_token_ids(generation_config: Mapping[str, Any], tokenizer_eos: int | None, vocab_size: int) -> frozenset[int]:
    """The model's end tokens: ``eos_token_id`` (one or a list) and the tokenizer's own.

    Raises:
        ConfigError: not token ids of the vocabulary.
    """
    found = generation_config.get("eos_token_id")
    ids = [] if found is None else found if isinstance(found, list) else [found]
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
            raise ConfigError(
                "E-CFG-GENERATION",
                "generation_config.json, eos_token_id",
                "not a token of the vocabulary",
                found=repr(token)[:80],
                expected=f"ids from 0 to {vocab_size - 1}",
            )
    own = () if tokenizer_eos is None else (tokenizer_eos,)
    return frozenset((*ids, *own))
