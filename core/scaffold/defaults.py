"""What a draft takes where config.json leaves a key out: what transformers' config class takes, where it is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bestiary.core.config import ModelConfig
from bestiary.core.rope import ROPE_KEYS
from bestiary.core.scaffold.known_classes import model_type_of
from bestiary.core.scaffold.sizes import BIASES, EPSILONS, SPELLINGS

_TIMEOUT = 120.0
#: What a draft takes for what nobody says.
GUESSES: Mapping[str, Any] = {
    **dict.fromkeys(EPSILONS, 1e-6),
    "hidden_act": "silu",
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "max_position_embeddings": 2048,
    "norm_topk_prob": True,
    **dict.fromkeys(BIASES, False),
}
_ASKED = (*GUESSES, "num_key_value_heads", "head_dim", "tie_word_embeddings", *ModelConfig.neutral)


@dataclass(frozen=True)
class Defaults:
    """A config class's values of keys that are left out.

    Args:
        values: by key; what the class does not have is not there.
        source: the class and its distribution; None where nothing could be asked.
        why: then, why not.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    source: str | None = None
    why: str = ""

    def of(self, key: str) -> Any:
        """What the draft takes for a key: the class's, or else a guess; None where there is none."""
        return self.values.get(key, GUESSES.get(key))

    def told(self, key: str, says: str | None = None) -> str:
        """A sentence about a key that config.json leaves out.

        Args:
            says: the value in words, if not as it is.
        """
        value = says or f"`{json.dumps(self.of(key))}`".replace("``", "`")
        origin = (
            f"as {self.source} does"
            if key in self.values
            else f"a guess: {self.why or f'{self.source} has no such key'}"
        )
        return f"key `{key}`: config.json leaves it out, and the draft takes {value}, {origin}"


def defaults_of(config: Mapping[str, Any], architecture: str | None) -> Defaults:
    """Ask the config class of the architecture that a config.json names, in a process of its own."""
    if architecture is None:
        return Defaults(why="config.json names no class of a usable name")
    distribution, model_type = model_type_of(architecture, config.get("model_type"))
    if distribution is None:
        return Defaults(why="transformers is not installed")
    if model_type is None:
        return Defaults(why=f"{distribution} has no `{architecture}`")
    groups = {key: _said_by(key) for key in _ASKED}
    found = ask({"model_type": model_type, "config": dict(config), "groups": groups})
    if found is None:
        return Defaults(why=f"{distribution} can't say it")
    return Defaults({key: value for key, value in found.items() if key}, f"{distribution}'s `{found['']}`")


def ask(question: Mapping[str, Any]) -> dict[str, Any] | None:
    """What :mod:`~bestiary.core.scaffold.class_defaults` answers; None if it can't."""
    command = [sys.executable, "-m", "bestiary.core.scaffold.class_defaults"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        ran = subprocess.run(
            command,
            input=json.dumps(question),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            env=environment,
            check=True,
        )
        found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
    return found


def _said_by(key: str) -> list[str]:
    """Every key of a config.json that says the same."""
    if key == "rope_parameters":
        return list(ROPE_KEYS)
    return [key, *SPELLINGS.get(key, ())]
