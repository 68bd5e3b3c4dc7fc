"""Quantized checkpoints: parameters quantized on their way into a file, one in memory at a time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestiary.converters.convert import Report
from bestiary.converters.write import (
    Group,
    check_place,
    check_space,
    shards,
    total_bytes,
    widest_first,
    write_index,
    write_shards,
)
from bestiary.core.checkpoint.checkpoint import Checkpoint
from bestiary.core.checkpoint.files import digest_file
from bestiary.core.checkpoint.manifest import FileDigest, Manifest
from bestiary.core.checkpoint.parameters import check_names, parameters, parse_config
from bestiary.core.checkpoint.safetensors import Slot
from bestiary.core.checkpoint.transaction import check_target, new_directory
from bestiary.core.checkpoint.verify import verify
from bestiary.core.checkpoint.weights import INDEX
from bestiary.core.errors import ConfigError, DataError
from bestiary.core.progress import Progress, Silent, step

if TYPE_CHECKING:
    from torch import Tensor

    from bestiary.core.plugins import PluginHost
    from bestiary.core.quant.choose import Chosen


def quantize(
    checkpoint: Path,
    target: Path,
    *,
    host: PluginHost,
    rules: str,
    overwrite: bool = False,
    verified: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write a checkpoint, whose digests are checked first, with the weights quantized that ``rules`` name.

    Args:
        rules: ``"int4:group=64, lm_head=int8, *.down_proj=none"``.
        verified: this process has just checked the digests.

    Raises:
        ConfigError: the rules don't fit the model, or a method needs a calibration.
        BestiaryError: of the kind that fits; nothing is left at ``target``.
    """
    from bestiary.core.quant.choose import chosen, methods_for

    progress = progress or Silent()
    check_target(target, overwrite=overwrite)
    check_place(checkpoint, target)
    source = Checkpoint.open(checkpoint)
    manifest = source.manifest
    if manifest.quantization:
        raise already_quantized(manifest, checkpoint.name)
    model = host.model(manifest.model)
    check_names(model, manifest.model_format)
    config = parse_config(model, manifest.config)
    chosen(rules, model, config, host)
    methods = methods_for(rules, model, config, host)
    if not verified:
        verify(checkpoint, host=host, progress=progress)
    groups = list(quantized_groups(_groups(source, parameters(model, config).shapes), methods))
    total = total_bytes(groups)
    check_space(target, total)
    with new_directory(target, overwrite=overwrite) as directory:
        with step(progress, "quantize", total, "B") as note:
            digests = write_weights(directory, groups, progress)
            note.text = f"{len(methods)} weights, {total / 1e9:.2f} GB"
        for name in manifest.files:
            if name not in source.weights.files:
                shutil.copyfile(checkpoint / name, directory / name)
        files = digests_of(directory, digests)
        records = {name: one.record() for name, one in methods.items()}
        made = manifest.model_copy(update={"quantization": records, "files": files})
        made.write(directory)
    return Report(
        model=manifest.model, reader="bestiary", dtype=manifest.dtype, tensors=sum(len(g.slots) for g in groups),
        parameters=sum(e.nbytes for e in source.weights.entries.values()), bytes=total, files=tuple(files),
    )  # fmt: skip


def already_quantized(manifest: Manifest, name: str) -> ConfigError:
    """The error of quantizing twice."""
    methods = ", ".join(sorted({str(said.get("method")) for said in manifest.quantization.values()}))
    return ConfigError(
        "E-BUILD-QUANTIZATION", name, "is quantized already", found=methods, expected="a plain checkpoint",
        hint="quantize the checkpoint that it was made from",
    )  # fmt: skip


def quantized_groups(groups: Sequence[Group], methods: Mapping[str, Chosen]) -> Iterator[Group]:
    """Groups of parameters with those quantized that have a method."""
    for group in groups:
        if any(slot.name in methods for slot in group.slots):
            yield _quantized(group, methods)
        else:
            yield group


def _quantized(group: Group, methods: Mapping[str, Chosen]) -> Group:
    from bestiary.core.quant.tensors import stored_name

    slots: list[Slot] = []
    for slot in group.slots:
        if slot.name not in methods:
            slots.append(slot)
            continue
        slots += [
            Slot(stored_name(slot.name, name), one.dtype, one.shape(slot.shape))
            for name, one in widest_first(methods[slot.name].method.layout(slot.shape))
        ]

    def make() -> list[Tensor]:
        import torch

        from bestiary.core.quant.tensors import quantized

        made: list[Tensor] = []
        for slot, tensor in zip(group.slots, group.make(), strict=True):
            if slot.name not in methods:
                made.append(tensor)
                continue
            method = methods[slot.name].method
            stored = quantized(method, tensor, torch.device("cpu"), slot.name)
            made += [stored[name].contiguous() for name, _ in widest_first(method.layout(slot.shape))]
        return made

    return Group(tuple(slots), make, group.origin)


def _groups(source: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> list[Group]:
    """A checkpoint's parameters as they are."""

    def group(name: str) -> Group:
        entry = source.weights.entries[name]

        def make() -> list[Tensor]:
            return [source.weights.tensor(name)]

        return Group((Slot(name, entry.dtype, entry.shape),), make, f"{entry.file}, tensor {name}")

    missing = [name for name in shapes if name not in source.weights.entries]
    if missing:
        raise DataError("E-CKPT-COVERAGE", f"tensor {missing[0]}", "is missing, and the model needs it")
    return [group(name) for name in shapes]


def write_weights(directory: Path, groups: Sequence[Group], progress: Progress) -> dict[str, tuple[int, str]]:
    """A checkpoint's weight files and their index."""
    files = shards(groups)
    names = [f"weights-{number:05d}.safetensors" for number in range(1, len(files) + 1)]
    digests = write_shards(directory, files, names, metadata={}, allow_nonfinite=False, progress=progress)
    write_index(directory, INDEX, files, names)
    return digests


def digests_of(directory: Path, known: Mapping[str, tuple[int, str]]) -> dict[str, Any]:
    """The digests of all files of a directory."""
    found = {}
    for path in sorted(directory.iterdir()):
        size, sha256 = known.get(path.name) or digest_file(directory, path.name)
        found[path.name] = FileDigest(size=size, sha256=sha256)
    return found
