"""Quantized checkpoints: parameters quantized on their way into a file, one in memory at a time."""

from __future__ import annotations

import logging
import math
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestiary.converters.cast import cast, tensor_bytes
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
from bestiary.core.checkpoint import kv_scales
from bestiary.core.checkpoint.checkpoint import Checkpoint
from bestiary.core.checkpoint.files import digest_file, json_bytes
from bestiary.core.checkpoint.manifest import FileDigest, Manifest
from bestiary.core.checkpoint.parameters import check_names, parameters, parse_config
from bestiary.core.checkpoint.safetensors import ITEMSIZE, SafetensorsWriter, Slot
from bestiary.core.checkpoint.transaction import check_target, new_directory, scratch_beside
from bestiary.core.checkpoint.verify import expected_tensors, verify
from bestiary.core.checkpoint.weights import INDEX, Weights
from bestiary.core.errors import ConfigError, DataError, shown
from bestiary.core.kv_format import KINDS
from bestiary.core.progress import Progress, Silent, step

log = logging.getLogger("bestiary.quantize")

if TYPE_CHECKING:
    from torch import Tensor

    from bestiary.core.plugins import PluginHost
    from bestiary.core.quant.choose import Chosen
    from bestiary.core.quant.kv_ranges import CacheRange
    from bestiary.core.quant.report import QuantizeReport


def quantize(
    checkpoint: Path,
    target: Path,
    *,
    host: PluginHost,
    rules: str | None,
    calibration: Calibration | None = None,
    kv_dtype: str | None = None,
    overwrite: bool = False,
    verified: bool = False,
    progress: Progress | None = None,
) -> QuantizeReport:
    """Write a checkpoint, whose digests are checked first, with the weights quantized that ``rules`` name.

    A checkpoint whose weights are quantized can still get scales of a cache. Without a calibration one weight is in memory at a time, with one one layer, and what the text makes in it.

    Args:
        rules: ``"int4:group=64, lm_head=int8, *.down_proj=none"``; None: weights stay as they are.
        calibration: the text that methods are calibrated with; needed by those that want one.
        kv_dtype: the kind of KV cache that gets calibrated scales, ``int8``, ``fp8`` or ``int4``; None: none does.
        verified: this process has just checked the digests.

    Raises:
        ConfigError: the rules don't fit the model, no cache is of that kind, or there is no calibration where one is needed.
        BestiaryError: of the kind that fits; nothing is left at ``target``.
    """
    from bestiary.core.quant.choose import methods_for, uncalibrated
    from bestiary.core.quant.report import QuantizeReport

    progress = progress or Silent()
    check_target(target, overwrite=overwrite)
    check_place(checkpoint, target)
    source = Checkpoint.open(checkpoint)
    manifest = source.manifest
    if manifest.quantization and (rules is not None or kv_scales.calibrated(manifest.quantization)):
        raise already_quantized(manifest, checkpoint.name)
    model = host.model(manifest.model)
    check_names(model, manifest.model_format)
    config = parse_config(model, manifest.config)
    methods: dict[str, Chosen] = {}
    if rules is not None:
        methods = (uncalibrated if calibration is None else methods_for)(rules, model, config, host)
        warn_of_none(methods, rules)
    known = parameters(model, config)
    shapes, caches = expected_tensors(known, manifest.quantization, host).shapes, known.caches
    if kv_dtype is not None:
        _check_cache(kv_dtype, calibrated=calibration is not None)
    sequences = None if calibration is None else _sequences(calibration, checkpoint, methods, shapes)
    if not verified:
        verify(checkpoint, host=host, progress=progress)
    plain = _groups(source, shapes)
    groups = list(quantized_groups(plain, methods))
    check_space(target, total_bytes(groups) + (0 if sequences is None else _spooled_bytes(plain, groups)))
    with ExitStack() as stack:
        if sequences is not None:
            scratch = stack.enter_context(scratch_beside(target))
            spooled, ranges = _calibrate(source, host, methods, sequences, scratch, progress)
            groups = [_replaced(group, spooled, methods) for group in plain]
            if kv_dtype is not None:
                groups += _scales(ranges, caches, kv_dtype)
        total = total_bytes(groups)
        directory = stack.enter_context(new_directory(target, overwrite=overwrite))
        with step(progress, "quantize", total, "B") as note:
            digests = write_weights(directory, groups, progress)
            note.text = f"{len(methods)} weights, {total / 1e9:.2f} GB"
        for name in manifest.files:
            if name not in source.weights.files:
                shutil.copyfile(checkpoint / name, directory / name)
        files = digests_of(directory, digests)
        records = {**manifest.quantization, **{name: one.record() for name, one in methods.items()}}
        if kv_dtype is not None:
            records |= {path: kv_scales.record(kv_dtype) for path in caches}
        made = manifest.model_copy(update={"quantization": records, "files": files})
        made.write(directory)
    names = Counter(one.name for one in methods.values())
    return QuantizeReport(
        checkpoint=target.name, model=manifest.model, parameters=sum(map(math.prod, known.shapes.values())),
        quantized=dict(sorted(names.items())), kv_dtype=kv_dtype, plain=len(known.shapes) - len(methods) - len(manifest.quantization),
        bytes_before=sum(entry.nbytes for entry in source.weights.entries.values()), bytes=total,
    )  # fmt: skip


def _check_cache(kind: str, *, calibrated: bool) -> None:
    if kind not in KINDS:
        raise ConfigError(
            "E-BUILD-QUANTIZATION", "kv_dtype", "no cache of few bits", found=shown(kind), expected=", ".join(KINDS),
            hint="a cache of elements needs no scales: leave --kv-dtype out",
        )  # fmt: skip
    if not calibrated:
        raise ConfigError(
            "E-BUILD-QUANTIZATION", f"kv_dtype {kind}", "needs a calibration",
            hint="--calibration FILE; without one leave it out: an engine with this kv_dtype gives each token a scale of its own",
        )  # fmt: skip


@dataclass(frozen=True)
class Calibration:
    """The text that stands for a model's use.

    Args:
        file: text, or JSON lines with ``text``, ``prompt`` or ``tokens``.
        samples: most sequences taken of it.
        length: most tokens of one.
    """

    file: Path
    samples: int = 128
    length: int = 512


def _sequences(
    calibration: Calibration, checkpoint: Path, methods: Mapping[str, Chosen], shapes: Mapping[str, tuple[int, ...]]
) -> list[list[int]]:
    """The sequences to calibrate on, with a warning where they are few for the widest weight that is calibrated."""
    from bestiary.core.quant.calibration import sequences_of

    found = sequences_of(calibration.file, checkpoint, samples=calibration.samples, length=calibration.length)
    tokens = sum(map(len, found))
    widest = max((shapes[name][-1] for name, one in methods.items() if one.method.wants), default=0)
    if len(found) == 1 or tokens < widest:
        several = "1 sequence" if len(found) == 1 else f"{len(found)} sequences"
        log.warning(
            "%s: %d token%s in %s: few to calibrate on%s", calibration.file.name, tokens, "" if tokens == 1 else "s", several,
            f", where weights have up to {widest} columns" if tokens < widest else "",
        )  # fmt: skip
    return found


def _spooled_bytes(plain: Sequence[Group], groups: Sequence[Group]) -> int:
    """Bytes of the quantized weights, which a calibration writes beside the target before it is made."""
    return total_bytes([group for before, group in zip(plain, groups, strict=True) if group is not before])


def warn_of_none(quantized: Collection[str], rules: str) -> None:
    """Say that the rules leave every weight as it is."""
    if not quantized:
        log.warning("quantization %r: quantizes no weight; all stay as they are", rules)


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


def _calibrate(
    source: Checkpoint,
    host: PluginHost,
    methods: Mapping[str, Chosen],
    sequences: Sequence[Sequence[int]],
    scratch: Path,
    progress: Progress,
) -> tuple[Weights, dict[str, CacheRange]]:
    """What the layers' parameters become, in a directory of its own: a layer is written and let go before the next is made.
    And what each cache was given."""
    from bestiary.core.quant.calibrated import quantize_layers
    from bestiary.core.quant.tensors import stored_name

    places: dict[str, str] = {}
    ranges: dict[str, CacheRange] = {}
    for number, layer in enumerate(quantize_layers(source, host, methods, sequences, progress=progress)):
        made = {
            stored_name(parameter, name): tensor
            for parameter, stored in layer.stored.items()
            for name, tensor in stored.items()
        }
        for name, tensor in layer.changed.items():
            made[name] = cast(tensor, source.weights.entries[name].dtype, f"parameter {name}")
        if made:
            file = f"layer-{number:05d}.safetensors"
            _spool(scratch / file, made)
            places |= dict.fromkeys(made, file)
        ranges |= layer.caches
    (scratch / INDEX).write_bytes(json_bytes({"weight_map": places}))
    return Weights.open(scratch), ranges


def _spool(path: Path, tensors: Mapping[str, Tensor]) -> None:
    slots = [Slot(name, str(t.dtype).removeprefix("torch."), tuple(t.shape)) for name, t in tensors.items()]
    slots.sort(key=lambda slot: -ITEMSIZE[slot.dtype])
    with SafetensorsWriter(path, slots) as writer:
        for slot in slots:
            writer.write(slot.name, [tensor_bytes(tensors[slot.name].contiguous())])
        writer.finish()


def _replaced(group: Group, spooled: Weights, methods: Mapping[str, Chosen]) -> Group:
    """A parameter's group with what calibration made of it."""
    from bestiary.core.quant.tensors import stored_name

    (slot,) = group.slots
    if slot.name in methods:
        layout = widest_first(methods[slot.name].method.layout(slot.shape))
        names = [stored_name(slot.name, name) for name, _ in layout]
        slots = [Slot(name, one.dtype, one.shape(slot.shape)) for name, (_, one) in zip(names, layout, strict=True)]
    elif slot.name in spooled.entries:
        names, slots = [slot.name], [slot]
    else:
        return group
    return Group(tuple(slots), lambda: [spooled.tensor(name) for name in names], group.origin)


def _scales(ranges: Mapping[str, CacheRange], caches: Iterable[str], kind: str) -> list[Group]:
    from bestiary.core.quant.kv_ranges import scales_of

    def group(name: str, scale: Tensor) -> Group:
        return Group((Slot(name, "float32", tuple(scale.shape)),), lambda: [scale], "calibration")

    return [group(name, scale) for name, scale in scales_of(ranges, caches, kind).items()]


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
