"""From a checkpoint back to a Hugging Face directory."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestiary.converters.convert import Report, weight_map
from bestiary.converters.tokenizer import FILES
from bestiary.converters.weight_map import Transfer
from bestiary.converters.write import Group, check_place, check_space, shards, total_bytes, write_index, write_shards
from bestiary.core.checkpoint.checkpoint import Checkpoint
from bestiary.core.checkpoint.files import json_bytes
from bestiary.core.checkpoint.parameters import parameters, parse_config
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


def export(
    checkpoint: Path, target: Path, *, host: PluginHost, overwrite: bool = False, progress: Progress | None = None
) -> Report:
    """Write a checkpoint, whose digests are checked first, as a Hugging Face directory: config.json, safetensors, the
    tokenizer's files.

    A directory that was converted with ``dtype="auto"`` gets its tensors back bit for bit.

    Raises:
        BestiaryError: of the kind that fits; nothing is left at ``target``.
    """
    progress = progress or Silent()
    check_target(target, overwrite=overwrite)
    check_place(checkpoint, target)
    opened = Checkpoint.open(checkpoint)
    verify(checkpoint, host=host, progress=progress)
    manifest = opened.manifest
    model = host.model(manifest.model)
    config = parse_config(model, manifest.config)
    expected = parameters(model, config)
    groups = []
    for targets, choices in weight_map(model, "hf", config).transfers(expected.shapes):
        if not choices:
            raise DataError(
                "E-CONV-COVERAGE", f"parameter {targets[0]}", "has no row in the weight map of its model plugin"
            )
        groups.append(_group(choices[0], opened, config))
    total = total_bytes(groups)
    check_space(target, total)
    with new_directory(target, overwrite=overwrite) as directory, step(progress, "export", total, "B") as note:
        names = _write(directory, groups, progress)
        (directory / "config.json").write_bytes(json_bytes(_config(manifest.config, manifest.dtype, config.dtype)))
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
    )


def _group(transfer: Transfer, checkpoint: Checkpoint, config: ModelConfig) -> Group:
    entries = [checkpoint.weights.entries[target] for target in transfer.targets]
    shapes = transfer.operation.source_shapes([entry.shape for entry in entries])
    slots = tuple(Slot(name, entries[0].dtype, shape) for name, shape in zip(transfer.sources, shapes, strict=True))

    def make() -> Sequence[Tensor]:
        return transfer.operation.reverse([checkpoint.weights.tensor(entry.name) for entry in entries], config)

    return Group(slots, make, ", ".join(f"{entry.file}, tensor {entry.name}" for entry in entries))


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
