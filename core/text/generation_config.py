"""What a model says about generation: sampling defaults and the tokens that end an answer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bestiary.core.errors import ConfigError
from bestiary.core.text.files import read_json


def load_generation_config(directory: Path) -> dict[str, Any]:
    """generation_config.json of a model, checkpoint or engine directory; empty where there is none."""
    return read_json(directory / "generation_config.json")


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
