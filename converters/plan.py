"""From headers alone: which source tensor goes where. Every error of coverage and shape is found here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from bestiary.converters.operations import Copy
from bestiary.converters.source import SourceTensor
from bestiary.converters.weight_map import Transfer, WeightMap, sources_of
from bestiary.core.checkpoint.parameters import Parameters, fields_of
from bestiary.core.config import ModelConfig
from bestiary.core.errors import DataError


class Plan(NamedTuple):
    """Transfers in the model's order; pairs of source tensors that must be equal; source tensors left out on purpose."""

    transfers: tuple[Transfer, ...]
    equal: tuple[tuple[str, str], ...]
    dropped: tuple[str, ...]


def make_plan(
    weights: WeightMap, expected: Parameters, source: Mapping[str, SourceTensor], config: ModelConfig
) -> Plan:
    """Match a source's tensors with a model's parameters.

    Raises:
        DataError: a parameter without a source, a source tensor without a use, or a wrong shape.
    """
    chosen = []
    for targets, choices in weights.transfers(expected.shapes):
        present = [choice for choice in choices if all(name in source for name in choice.sources)]
        if not present:
            raise _missing(targets, choices, source, expected)
        # Alternatives may read one tensor in several shapes; where none fits, the first is what the error speaks of.
        transfer = next((choice for choice in present if _fits(choice, expected, source)), present[0])
        _check_shapes(transfer, expected, source, config)
        chosen.append(transfer)
    equal = _tied(weights, expected, source, chosen)
    used = {name for transfer in chosen for name in transfer.sources} | {tied for tied, _ in equal}
    left = [name for name in source if name not in used]
    dropped = [name for name in left if weights.drops(name)]
    unexpected = [name for name in left if not weights.drops(name)]
    if unexpected:
        raise _unexpected(unexpected, source, config)
    return Plan(tuple(chosen), tuple(equal), tuple(dropped))


def _missing(
    targets: tuple[str, ...], choices: list[Transfer], source: Mapping[str, SourceTensor], expected: Parameters
) -> DataError:
    subject = f"parameter {targets[0]}"
    if not choices:
        return DataError("E-CONV-COVERAGE", subject, "has no row in the weight map of its model plugin")
    absent = [name for name in sources_of(choices) if name not in source]
    shape = expected.shapes[targets[0]]
    return DataError(
        "E-CONV-MISSING",
        f"{_files(source)}, tensor {absent[0]}",
        f"is missing, and {subject} is made from it",
        found=f"{len(source)} tensors, none of that name" if len(choices) == 1 else f"none of {', '.join(absent[:4])}",
        expected=f"shape {list(choices[0].operation.source_shapes([expected.shapes[t] for t in targets])[0])}"
        if shape
        else None,
    )


def _files(source: Mapping[str, SourceTensor]) -> str:
    names = sorted({tensor.file for tensor in source.values()})
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]} ({len(names)} files)"


def _fits(transfer: Transfer, expected: Parameters, source: Mapping[str, SourceTensor]) -> bool:
    shapes = transfer.operation.source_shapes([expected.shapes[target] for target in transfer.targets])
    return all(source[name].shape == shape for name, shape in zip(transfer.sources, shapes, strict=True))


def _check_shapes(
    transfer: Transfer, expected: Parameters, source: Mapping[str, SourceTensor], config: ModelConfig
) -> None:
    shapes = transfer.operation.source_shapes([expected.shapes[target] for target in transfer.targets])
    for name, shape in zip(transfer.sources, shapes, strict=True):
        found = source[name].shape
        if found == shape:
            continue
        fields = fields_of(config, shape)
        transposed = len(shape) == 2 and found == shape[::-1]
        raise DataError(
            "E-CONV-SHAPE",
            f"{source[name].file}, tensor {name}",
            "has a wrong shape",
            found=str(list(found)),
            expected=str(list(shape)) + (f" from {fields}" if fields else ""),
            hint="it looks transposed: export it again from the model it was made from" if transposed else None,
        )


def _tied(
    weights: WeightMap, expected: Parameters, source: Mapping[str, SourceTensor], chosen: list[Transfer]
) -> list[tuple[str, str]]:
    """Source tensors of a shared parameter's further names, each with the source of the name it is stored under."""
    by_target = {t.targets[0]: t for t in chosen if isinstance(t.operation, Copy)}
    equal = []
    for _, choices in weights.transfers({name: expected.shapes[first] for name, first in expected.aliases.items()}):
        for choice in choices:
            first = by_target.get(expected.aliases.get(choice.targets[0], ""))
            if isinstance(choice.operation, Copy) and choice.sources[0] in source and first is not None:
                equal.append((choice.sources[0], first.sources[0]))
    return equal


def _unexpected(names: list[str], source: Mapping[str, SourceTensor], config: ModelConfig) -> DataError:
    first = names[0]
    more = f" ({len(names)} such tensors)" if len(names) > 1 else ""
    hints = {".bias": "is a field such as attention_bias wrong in config.json?"}
    hint = next((text for suffix, text in hints.items() if first.endswith(suffix)), None)
    return DataError(
        "E-CONV-UNEXPECTED",
        f"{source[first].file}, tensor {first}",
        f"is used by no parameter of the model{more}",
        found=f"shape {list(source[first].shape)}",
        expected=f"the tensors of {config.num_hidden_layers} layers",
        hint=hint or "is config.json of this model?",
    )
