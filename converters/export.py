"""From a checkpoint back to a Hugging Face directory."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestiary.converters.compressed_tensors import Scheme, quantization_config
from bestiary.converters.convert import Report, weight_map
from bestiary.converters.export_quantized import QuantizedExport
from bestiary.converters.tokenizer import FILES
from bestiary.converters.weight_map import Transfer
from bestiary.converters.write import Group, check_place, check_space, shards, total_bytes, write_index, write_shards
from bestiary.core.checkpoint.checkpoint import Checkpoint
from bestiary.core.checkpoint.files import json_bytes
from bestiary.core.checkpoint.parameters import Parameters, parameters, parse_config
from bestiary.core.checkpoint.safetensors import Slot
from bestiary.core.checkpoint.transaction import check_target, new_directory
from bestiary.core.checkpoint.verify import verify
from bestiary.core.checkpoint.weights import HF_INDEX, HF_SINGLE
from bestiary.core.config import ModelConfig
from bestiary.core.errors import DataError
from bestiary.core.progress import Progress, Silent, step

if TYPE_CHECKING:
    from torch import Tensor

    from bestiary.core.plugins import PluginHost
    from bestiary.spec import Model


def export(
    checkpoint: Path,
    target: Path,
    *,
    host: PluginHost,
    dequantize: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write a checkpoint, whose digests are checked first, as a Hugging Face directory: config.json, safetensors, the
    tokenizer's files.

    A directory that was converted with ``dtype="auto"`` gets its tensors back bit for bit. Quantized weights are written as
    compressed-tensors has them.

    Args:
        dequantize: write quantized weights restored, in the dtype of most of the others.

    Raises:
        ConfigError: compressed-tensors has no word for how a weight is quantized.
        BestiaryError: of the kind that fits; nothing is left at ``target``.
    """
    from bestiary.core.quant.choose import embeddings, methods_in

    progress = progress or Silent()
    check_target(target, overwrite=overwrite)
    check_place(checkpoint, target)
    opened = Checkpoint.open(checkpoint)
    verify(checkpoint, host=host, progress=progress)
    manifest = opened.manifest
    model = host.model(manifest.model)
    config = parse_config(model, manifest.config)
    expected = parameters(model, config)
    methods = methods_in(manifest.quantization, host)
    quantized = QuantizedExport(opened, methods, embeddings(model, config) if methods else (), expected, config)
    transfers = []
    for targets, choices in weight_map(model, "hf", config).transfers(expected.shapes):
        if not choices:
            raise DataError(
                "E-CONV-COVERAGE", f"parameter {targets[0]}", "has no row in the weight map of its model plugin"
            )
        transfers.append(choices[0])
    if not dequantize:
        quantized.check_experts(transfers)
    groups: list[Group] = []
    for transfer in transfers:
        if not quantized.has(transfer):
            groups.append(_group(transfer, opened, config))
        elif dequantize:
            groups.append(quantized.restored(transfer, manifest.dtype))
        else:
            groups += quantized.compressed(transfer)
    total = total_bytes(groups)
    check_space(target, total)
    with new_directory(target, overwrite=overwrite) as directory, step(progress, "export", total, "B") as note:
        names = _write(directory, groups, progress)
        raw = _config(manifest.config, manifest.dtype, config.dtype)
        if quantized.schemes:
            raw = {**raw, "quantization_config": _quantization(quantized.schemes, groups, model, config, expected)}
        (directory / "config.json").write_bytes(json_bytes(raw))
        for name in FILES:
            if name in manifest.files:
                shutil.copyfile(checkpoint / name, directory / name)
        files = tuple(sorted(path.name for path in directory.iterdir()))
        note.text = f"{len(names)} files of weights"
    return Report(
        model=manifest.model,
        reader="hf",
        dtype=manifest.dtype,
        tensors=sum(len(group.slots) for group in groups),
        parameters=sum(math.prod(shape) for shape in expected.shapes.values()),
        bytes=total,
        files=files,
        kept=() if dequantize else tuple(methods),
    )


def _group(transfer: Transfer, checkpoint: Checkpoint, config: ModelConfig) -> Group:
    entries = [checkpoint.weights.entries[target] for target in transfer.targets]
    shapes = transfer.operation.source_shapes([entry.shape for entry in entries])
    slots = tuple(Slot(name, entries[0].dtype, shape) for name, shape in zip(transfer.sources, shapes, strict=True))

    def make() -> Sequence[Tensor]:
        return transfer.operation.reverse([checkpoint.weights.tensor(entry.name) for entry in entries], config)

    return Group(slots, make, ", ".join(f"{entry.file}, tensor {entry.name}" for entry in entries))


def _quantization(
    schemes: Mapping[str, Scheme], groups: Sequence[Group], model: Model, config: ModelConfig, expected: Parameters
) -> dict[str, Any]:
    """What config.json says of the modules that are matrices; a tied head is one, and is not quantized."""
    tied = {name: expected.shapes[first] for name, first in expected.aliases.items()}
    plain = [slot.name for group in groups for slot in group.slots if len(slot.shape) == 2]
    for _, choices in weight_map(model, "hf", config).transfers(tied):
        plain += choices[0].sources if choices else ()
    names = [name.removesuffix(".weight") for name in plain if name.endswith(".weight")]
    return quantization_config({**dict.fromkeys(names), **schemes})


def _write(directory: Path, groups: Sequence[Group], progress: Progress) -> list[str]:
    files = shards(groups)
    count = len(files)
    names = [HF_SINGLE] if count == 1 else [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    write_shards(directory, files, names, metadata={"format": "pt"}, allow_nonfinite=True, progress=progress)
    if count > 1:
        write_index(directory, HF_INDEX, files, names)
    return names


def _config(raw: dict[str, Any], stored: str, said: str | None) -> dict[str, Any]:
    """``raw``, naming the dtype that the weights now have."""
    if said in (None, stored):
        return raw
    key = "dtype" if "dtype" in raw else "torch_dtype"
    return {**raw, key: stored}
