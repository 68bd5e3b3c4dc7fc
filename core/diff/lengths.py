"""Sequences that are no longer than what an engine runs."""

from __future__ import annotations

from collections.abc import Sequence

from bestiary.core.checkpoint.parameters import parse_config
from bestiary.core.diff.open import Ours
from bestiary.core.errors import RequestError


def longest_of(ours: Ours) -> int:
    """Most tokens of a sequence that the engine, or else the model, takes."""
    manifest = ours.manifest
    config = parse_config(ours.host.model(manifest.checkpoint.model), manifest.checkpoint.config)
    return manifest.options.max_seq_len or config.max_position_embeddings


def within(sequences: Sequence[list[int]], ours: Ours, *, cut: bool) -> list[list[int]]:
    """The sequences; a longer one than the engine or the model takes is cut, if that may be.

    Args:
        cut: nobody named them.

    Raises:
        RequestError: one that somebody named is longer.
    """
    most = longest_of(ours)
    longest = max(len(tokens) for tokens in sequences)
    if longest > most and not cut:
        raise RequestError(
            "E-SIDE-LENGTH",
            "prompt",
            "is longer than the sequences that the engine runs",
            found=f"{longest} tokens",
            expected=f"{most} at most",
        )
    return [tokens[:most] for tokens in sequences]
