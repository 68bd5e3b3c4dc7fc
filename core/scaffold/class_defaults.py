"""What transformers takes where a config.json leaves a key out. Run as a process: importing transformers takes seconds."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any


def defaults(model_type: str, config: Mapping[str, Any], groups: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """By name, what the class of a ``model_type`` has there if the group's keys are left out; unknown ones are left out.

    Args:
        config: the object of a config.json.
        groups: name → every key that says it.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = CONFIG_MAPPING[model_type]
    found: dict[str, Any] = {"": kind.__name__}
    for name, keys in groups.items():
        rest = {key: value for key, value in config.items() if key not in {*keys, "model_type", "auto_map"}}
        try:
            value = getattr(kind(**rest), name, None)
            json.dumps(value)
        except Exception:  # a config that transformers refuses says nothing of its defaults
            continue
        if value is not None:
            found[name] = value
    return found


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    print(json.dumps(defaults(asked["model_type"], asked["config"], asked["groups"])))
