"""Checks of keys against the reference's own config class: what holds where one is left out, and whether a size is read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import torch

from bestiary.core.checkpoint.parameters import parameters, parse_config
from bestiary.core.config import SILENT, ModelConfig
from bestiary.core.conformance.findings import Findings
from bestiary.core.conformance.model_case import Case
from bestiary.core.errors import ConfigError
from bestiary.core.plugins import resolve
from bestiary.core.program.trace import trace

#: Keys that are no family's own, or that say nothing about the forward pass.
_PASSED_OVER = frozenset([*SILENT, "dtype", "torch_dtype", "vocab_size"])
#: Fields that say nothing about the forward pass; that a model is run for fewer tokens is safe.
_APART = ("dtype", "ignored_keys", "max_position_embeddings")


def has_class(case: Case) -> bool:
    """Whether the reference is of transformers' kind, with a config class of its own."""
    return hasattr(getattr(case.module, "config", None), "to_json_string")


def omitted_keys(case: Case, findings: Findings) -> None:
    """A key that is left out means what it means to the reference, or is missed; the size of heads is read if it is there."""
    looked = []
    for key in case.raw:
        if key in _PASSED_OVER or (theirs := _class_default(case, key)) is None:
            continue
        found = _parsed(case, {name: value for name, value in case.raw.items() if name != key})
        if found is None:
            continue  # it is missed by name, which is safe
        wanted = _parsed(case, {**case.raw, **theirs})
        value = json.dumps(theirs[key])[:80]
        takes = f"{key} is left out: the reference takes {value}"
        findings.require(wanted is not None, f"{takes}, which can't be with this config, and the plugin takes another")
        assert wanted is not None
        other = _differing(found, wanted)
        same = not other or _computes(case, found) == _computes(case, wanted)
        findings.require(same, f"{takes}, and the plugin reads {'; '.join(other)}")
        looked.append(key)
    _reads_head_dim(case, findings)
    findings.note(f"left out: {', '.join(looked)}" if looked else "every key that it reads must be there")


def _parsed(case: Case, raw: Mapping[str, Any]) -> ModelConfig | None:
    """None where the plugin refuses the config."""
    try:
        return parse_config(case.suite.model, raw)
    except ConfigError:
        return None


def _differing(found: ModelConfig, wanted: ModelConfig) -> list[str]:
    fields = [name for name in type(found).model_fields if name not in _APART]
    pairs = [(name, getattr(found, name), getattr(wanted, name)) for name in fields]
    return [f"{name} = {one!r}, not {other!r}" for name, one, other in pairs if one != other]


def _computes(case: Case, config: ModelConfig) -> tuple[object, ...]:
    """What the model of a config does: a field that is derived where it is not given is no other model."""
    model = case.suite.model
    try:
        with torch.device("meta"):
            module = resolve(model.model, needed_by=f"model {model.name}")(config)
    except ConfigError:
        return ("refused",)
    program = trace(module)
    return program.listing(), program.caches, parameters(model, config).shapes


def _class_default(case: Case, key: str) -> dict[str, Any] | None:
    """What the reference's class has for a key that is left out; None where it has no such key, or can't do without it."""
    config: Any = case.module.config
    try:
        made = json.loads(type(config)(**_said(case, without=key)).to_json_string(use_diff=False))
    except Exception:
        return None
    return {key: made[key]} if key in made else None


def _said(case: Case, without: str) -> dict[str, Any]:
    return {name: value for name, value in case.raw.items() if name not in (without, "model_type")}


def _reads_head_dim(case: Case, findings: Findings) -> None:
    """Where the reference's tensors follow ``head_dim``, the plugin's do."""
    config: Any = case.module.config
    hidden, heads = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
    if type(hidden) is not int or type(heads) is not int or not heads:
        return
    sizes = [2 * size for size in (hidden // heads, hidden // heads + 2)]
    theirs = [made for size in sizes if (made := _reference_numbers(case, size)) is not None]
    ours = [made for size in sizes if (made := _own_numbers(case, size)) is not None]
    if len(theirs) < 2 or theirs[0] == theirs[1] or len(ours) < 2:
        return  # the reference knows no such key, or one of them refuses the sizes
    findings.require(
        ours[1] - ours[0] == theirs[1] - theirs[0], "head_dim is not read: the reference's tensors follow it"
    )


def _reference_numbers(case: Case, head_dim: int) -> int | None:
    config: Any = case.module.config
    try:
        with torch.device("meta"):
            made = type(case.module)(type(config)(**_said(case, without="head_dim"), head_dim=head_dim))
        return sum(parameter.numel() for parameter in made.parameters())
    except Exception:
        return None


def _own_numbers(case: Case, head_dim: int) -> int | None:
    try:
        config = parse_config(case.suite.model, {**case.raw, "head_dim": head_dim})
        return sum(math.prod(shape) for shape in parameters(case.suite.model, config).shapes.values())
    except ConfigError:
        return None
