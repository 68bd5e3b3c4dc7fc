"""Checks of configs and of what lies in files: conversion, export, coverage, weight maps."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from bestiary.converters.convert import convert, open_source, weight_map
from bestiary.converters.export import export
from bestiary.converters.plan import Plan, make_plan
from bestiary.converters.source import Source, SourceTensor
from bestiary.core.checkpoint.checkpoint import Checkpoint
from bestiary.core.checkpoint.parameters import parameters, parse_config
from bestiary.core.checkpoint.verify import verify
from bestiary.core.config import ModelConfig
from bestiary.core.conformance.findings import Findings
from bestiary.core.conformance.model_case import Case
from bestiary.core.errors import ConfigError, DataError

#: Keys that change the mathematics of one family or another, each with two values that do. A config refuses the one that
#: is not its own already, or it is the family's own and shows in the config's fields.
MATHEMATICS: Mapping[str, tuple[Any, Any]] = {
    "attn_logit_softcapping": (30.0, 40.0),
    "final_logit_softcapping": (20.0, 30.0),
    "partial_rotary_factor": (0.5, 0.25),
    "pretraining_tp": (2, 4),
    "sliding_window": (5, 6),
}
#: Values that no family can have.
IMPOSSIBLE: Mapping[str, Any] = {
    "hidden_act": "bestiary_unknown",
    "is_encoder_decoder": True,
    "rope_scaling": {"rope_type": "bestiary_unknown", "factor": 2.0},
}
_OTHERS = ("bestiary_unknown", 7.5, True, 3, ["bestiary_unknown"])


def converts(case: Case, findings: Findings) -> None:
    """The reference's directory becomes a checkpoint that ``verify`` finds whole, with every parameter."""
    report = verify(case.checkpoint, host=case.suite.host)
    wanted = parameters(case.suite.model, case.config).shapes
    found = (report.tensors, case.report.tensors)
    findings.require(
        found == (len(wanted),) * 2, f"verified and converted: {found} tensors, the model has {len(wanted)}"
    )
    if case.report.ignored_keys:
        findings.note(f"ignored keys: {', '.join(case.report.ignored_keys)}")


def exports(case: Case) -> None:
    """``export`` gives the source's tensors back bit for bit, and its config."""
    target = case.directory / "exported"
    export(case.checkpoint, target, host=case.suite.host, overwrite=True)
    source, back = open_source(case.source, case.suite.host), open_source(target, case.suite.host)
    plan = _planner(case)(source.tensors)
    left_out = {*plan.dropped, *(name for name, _ in plan.equal)}
    lost, added = (
        sorted(set(source.tensors) - left_out - set(back.tensors)),
        sorted(set(back.tensors) - set(source.tensors)),
    )
    case.findings.require(not lost, f"export lost {', '.join(lost)}")
    case.findings.require(not added, f"export made up {', '.join(added)}")
    for name in back.tensors:
        assert source.stored_dtype(name) == back.stored_dtype(name), f"export changed the dtype of {name}"
        was, now = (one.read(name, one.stored_dtype(name)) for one in (source, back))
        assert was.shape == now.shape and torch.equal(_bits(was), _bits(now)), f"export changed {name}"
    assert back.config(case.suite.model) == source.config(case.suite.model), "export changed config.json"


def gguf_map(case: Case, findings: Findings) -> None:
    """The GGUF weight map has a row for every parameter, and each of its operations undoes its reverse, bit for bit."""
    checkpoint = Checkpoint.open(case.checkpoint)
    expected = parameters(case.suite.model, case.config)
    names: list[str] = []
    for targets, choices in weight_map(case.suite.model, "gguf", case.config).transfers(expected.shapes):
        assert choices, f"parameter {targets[0]} has no row in the GGUF weight map"
        shapes = [expected.shapes[target] for target in targets]
        ours = [checkpoint.weights.tensor(target) for target in targets]
        theirs = choices[0].operation.reverse(ours, case.config)
        assert [tuple(t.shape) for t in theirs] == choices[0].operation.source_shapes(shapes), targets[0]
        back = choices[0].operation.forward(theirs, shapes, case.config)
        for target, one, other in zip(targets, ours, back, strict=True):
            assert torch.equal(_bits(one), _bits(other)), f"the GGUF row of {target} is not reversible"
        names += choices[0].sources
    findings.require(len(set(names)) == len(names), "two rows of the GGUF weight map read one tensor")
    findings.note(f"{len(names)} tensors")


def coverage(case: Case, findings: Findings) -> None:
    """A missing, an extra and a misshapen tensor are refused by name: one of each kind, from all over the file."""
    source = open_source(case.source, case.suite.host)
    tensors = dict(source.tensors)
    plan = _planner(case)
    used = [name for transfer in plan(tensors).transfers for name in transfer.sources]
    kinds = _one_of_each_kind(used)
    for name in kinds:
        _refused(plan, {n: t for n, t in tensors.items() if n != name}, f"without {name}", name)
        for shape in _wrong_shapes(tensors[name].shape):
            _refused(plan, {**tensors, name: tensors[name]._replace(shape=shape)}, f"{name} of {list(shape)}", name)
    for name in _extra_names(used, case.config.num_hidden_layers):
        if name not in tensors and not weight_map(case.suite.model, source.format, case.config).drops(name):
            added = SourceTensor(name, "float32", (3,), next(iter(tensors.values())).file)
            _refused(plan, {**tensors, name: added}, f"with {name}", name)
    _nothing_left(case, source, kinds[len(kinds) // 2])
    findings.require(bool(kinds), "the weight map reads no tensor")
    findings.note(f"{len(kinds)} kinds of tensors")


def unknown_keys(case: Case) -> None:
    """A key that nobody knows is ignored and listed, wherever it is."""
    config = parse_config(case.suite.model, {**case.raw, "bestiary_unknown": 1, "another_unknown": {"deep": [1]}})
    listed = {"bestiary_unknown", "another_unknown"} <= set(config.ignored_keys)
    case.findings.require(listed, "unknown keys are not listed")
    case.findings.require(_fields(config) == _fields(case.config), "an unknown key changed the config")


def impossible_keys(case: Case, findings: Findings) -> None:
    """Values that can't be, and keys that would change the mathematics, are refused by name and never ignored."""
    tried = [*_wrong_values(case), *_not_implemented(case)]
    for key, raw in tried:
        if (config := _parsed(case, key, raw)) is not None:
            raise AssertionError(f"{key} = {raw[key]!r} is accepted{_ignored(config, key)}")
    for key, (value, other) in MATHEMATICS.items():
        value = other if value in _said(case, key) else value
        config = _parsed(case, key, {**case.raw, key: value})
        noticed = config is None or key in type(config).model_fields or _fields(config) != _fields(case.config)
        findings.require(noticed, f"{key} = {value!r} is accepted and changes nothing{_ignored(config, key)}")
    findings.note(f"{len(tried) + len(MATHEMATICS)} configs")


def _parsed(case: Case, key: str, raw: Mapping[str, Any]) -> ModelConfig | None:
    """The config, or None where it is refused as it should be, with the key's name."""
    try:
        return parse_config(case.suite.model, raw)
    except ConfigError as error:
        assert key in str(error), f"the refusal of {key} = {raw[key]!r} does not name it: {error}"
        return None
    except Exception as error:
        raise AssertionError(f"{key} = {raw[key]!r}: {type(error).__name__} in place of a ConfigError") from error


def _said(case: Case, key: str) -> list[Any]:
    """What the config has for a key, wherever it says it."""
    places = [case.raw, case.raw.get("rope_parameters"), case.raw.get("rope_scaling")]
    read = [getattr(one, key, None) for one in (case.config, case.config.rope)]
    return [*read, *(place.get(key) for place in places if isinstance(place, Mapping))]


def _ignored(config: ModelConfig | None, key: str) -> str:
    return ", listed as a key that nobody knows" if config is not None and key in config.ignored_keys else ""


def _fields(config: ModelConfig) -> dict[str, Any]:
    return config.model_dump(exclude={"ignored_keys"})


def _wrong_values(case: Case) -> Iterator[tuple[str, dict[str, Any]]]:
    """Configs with a size that is no size, and with heads that do not share out."""
    raw, fields = case.raw, type(case.config).model_fields
    for key in (key for key, value in raw.items() if type(value) is int and value > 1 and key in fields):
        for wrong in (-raw[key], "many", 10**15, [raw[key]]):
            yield key, {**raw, key: wrong}
    for key in ("vocab_size", "hidden_size", "num_hidden_layers"):
        yield key, {**raw, key: None}
    if "num_key_value_heads" in fields and type(raw.get("num_key_value_heads")) is int:
        yield "num_key_value_heads", {**raw, "num_key_value_heads": raw["num_attention_heads"] + 1}


def _not_implemented(case: Case) -> Iterator[tuple[str, dict[str, Any]]]:
    """Configs with a value that the family says it does not implement, and values that nobody does."""
    for key, allowed in type(case.config)._all_neutral().items():
        for value in _OTHERS:
            if not any(type(value) is type(one) and value == one for one in allowed):
                yield key, {**case.raw, key: value}
    for key, value in IMPOSSIBLE.items():
        yield key, {**case.raw, key: value}


def _planner(case: Case) -> Callable[[Mapping[str, SourceTensor]], Plan]:
    """The plan of a source's tensors; what it shares with every other is made once."""
    model = case.suite.model
    rows, expected = weight_map(model, "hf", case.config), parameters(model, case.config)
    return lambda tensors: make_plan(rows, expected, tensors, case.config)


def _one_of_each_kind(names: list[str]) -> list[str]:
    """For each name up to its numbers one tensor, taken from first, middle and last layers in turn."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(re.sub(r"\d+", "{}", name), []).append(name)
    return [same[(index * len(same) // 2) % len(same)] for index, same in enumerate(kinds.values())]


def _wrong_shapes(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    yield (*shape, 1)
    if shape:
        yield (*shape[:-1], shape[-1] + 1)
    if len(shape) > 1:
        yield (shape[0] - 1, *shape[1:])
        if shape[0] != shape[-1]:
            yield shape[::-1]


def _extra_names(used: list[str], layers: int) -> Iterator[str]:
    """A tensor that nobody knows; a bias and a scale that no module has; every kind of tensor in one layer too many."""
    yield "bestiary_unknown.weight"
    for name in _one_of_each_kind(used):
        module = name.rpartition(".")[0]
        yield f"{module}.bias"
        yield f"{module}.bestiary_unknown"
        if re.search(r"\.\d+\.", name):
            yield re.sub(r"\.\d+\.", f".{layers}.", name, count=1)


def _refused(
    plan: Callable[[Mapping[str, SourceTensor]], Plan], tensors: Mapping[str, SourceTensor], what: str, name: str
) -> None:
    try:
        plan(tensors)
    except DataError as error:
        assert name in str(error), f"a source {what} is refused without the tensor's name: {error}"
    else:
        raise AssertionError(f"a source {what} is accepted")


def _nothing_left(case: Case, source: Source, name: str) -> None:
    """The same through ``convert`` with a real file, which leaves nothing behind."""
    from safetensors.torch import save_file

    broken, target = case.directory / "broken", case.directory / "broken-checkpoint"
    broken.mkdir(exist_ok=True)
    (broken / "config.json").write_bytes((case.source / "config.json").read_bytes())
    kept = {other: source.read(other, source.stored_dtype(other)).clone() for other in source.tensors if other != name}
    save_file(kept, broken / "model.safetensors", metadata={"format": "pt"})
    try:
        convert(broken, target, host=case.suite.host)
    except DataError as error:
        assert name in str(error) and not target.exists(), f"convert without {name} left something or hid the name"
    else:
        raise AssertionError(f"convert accepts a source without {name}")


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """As bytes, so that NaN equals itself and -0 differs from 0."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)
