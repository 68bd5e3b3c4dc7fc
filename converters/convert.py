"""From a foreign checkpoint to ours: headers checked in full, then streamed tensor by tensor."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bestiary.converters.cast import check_option, equal
from bestiary.converters.keep import Kept, kept, kept_group
from bestiary.converters.plan import Plan, make_plan
from bestiary.converters.quantize import quantized_groups, warn_of_none
from bestiary.converters.source import QuantizedSource, Source
from bestiary.converters.tokenizer import check_token_ids
from bestiary.converters.weight_map import Transfer, WeightMap
from bestiary.converters.write import Group, check_place, check_space, shards, total_bytes, write_index, write_shards
from bestiary.core.checkpoint.files import digest_file, read_json
from bestiary.core.checkpoint.manifest import FORMAT, FileDigest, Manifest, Provenance, Software
from bestiary.core.checkpoint.parameters import Parameters, check_layers, parameters, parse_config
from bestiary.core.checkpoint.safetensors import Slot
from bestiary.core.checkpoint.transaction import check_target, new_directory
from bestiary.core.checkpoint.weights import INDEX
from bestiary.core.config import ModelConfig
from bestiary.core.errors import ConfigError, DataError, MissingInputError
from bestiary.core.plugins import resolve
from bestiary.core.progress import Progress, Silent, step
from bestiary.core.resolve_params import check_defaults
from bestiary.core.text.tokenizer import has_tokenizer, no_tokenizer
from bestiary.core.version import __version__

if TYPE_CHECKING:
    from torch import Tensor

    from bestiary.core.plugins import PluginHost
    from bestiary.core.quant.choose import Chosen, Methods
    from bestiary.spec import Model

log = logging.getLogger("bestiary.convert")


@dataclass(frozen=True)
class Report:
    """What a conversion or an export did; ``dropped`` and ``ignored_keys`` are what it left out of the source, ``kept`` the
    parameters that stayed quantized as they were."""

    model: str
    reader: str
    dtype: str
    tensors: int
    parameters: int
    bytes: int
    files: tuple[str, ...]
    dropped: tuple[str, ...] = ()
    ignored_keys: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class _Job(NamedTuple):
    source: Source
    model: Model
    raw: dict[str, Any]
    config: ModelConfig
    expected: Parameters
    plan: Plan


def convert(
    source: Path,
    target: Path,
    *,
    host: PluginHost,
    dtype: str = "auto",
    quantize: str | None = None,
    keep_quantized: bool = False,
    overwrite: bool = False,
    allow_nonfinite: bool = False,
    needs_tokenizer: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Convert a Hugging Face directory, a GGUF file or what else a plugin reads into a checkpoint directory.

    The result depends on the source, the plugins and ``dtype`` alone: two runs give the same bytes. Memory beyond the
    mapped files is at most twice the largest tensor written.

    Args:
        dtype: ``"auto"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``. ``auto`` keeps each tensor of a safetensors
            file as it is (a tensor made from several of different dtypes becomes float32; float64 and integers are
            refused), makes a quantized GGUF bfloat16, and gives a plain GGUF the dtype that most of its bytes have.
        quantize: rules of which quantization method each module gets, ``"int4:group=64, lm_head=int8"``; those that want
            a calibration are refused.
        keep_quantized: weights that the source has quantized in a way that a method stores (of a GGUF: Q4_0, Q4_1, Q8_0)
            stay as they are; ``dtype`` is for the others.
        allow_nonfinite: let NaN and infinities pass.
        needs_tokenizer: refuse a model without one before its weights are converted.

    Raises:
        BestiaryError: of the kind that fits; nothing is left at ``target``.
    """
    progress = progress or Silent()
    check_option(dtype)
    check_target(target, overwrite=overwrite)
    check_place(source, target)
    with step(progress, "read headers") as note:
        job = _prepare(source, host)
        groups, methods, staying, main = _planned(job, dtype, quantize, keep_quantized, host)
        total = total_bytes(groups)
        check_space(target, total)
        note.text = f"{job.model.name}, {len(job.source.tensors)} tensors"
    if quantize is not None:
        warn_of_none(methods.keys() - staying.keys(), quantize)
    with new_directory(target, overwrite=overwrite) as directory:
        sources = _digest_sources(job.source, progress)
        with step(progress, "tokenizer"):
            job.source.write_tokenizer(directory)
            if needs_tokenizer and not has_tokenizer(directory):
                raise no_tokenizer(job.source.name)
            _check_generation(directory, job.config)
        with step(progress, "convert", total, "B") as note:
            _check_tied(job, dtype)
            written = _write(directory, groups, allow_nonfinite, progress)
            stayed = f", {len(staying)} of them as they are quantized" if keep_quantized else ""
            note.text = f"{len(job.expected.shapes)} tensors{stayed}, {total / 1e9:.2f} GB"
        files = _digests(directory, written)
        manifest = Manifest(
            format=FORMAT,
            model=job.model.name,
            model_format=job.model.format,
            architecture=job.raw["architectures"][0],
            config=job.raw,
            dtype=main,
            quantization={name: one.record() for name, one in methods.items()},
            provenance=_provenance(job, host, sources),
            files=files,
        )
        manifest.write(directory)
    return Report(
        model=job.model.name,
        reader=job.source.format,
        dtype=main,
        tensors=len(job.expected.shapes),
        parameters=sum(math.prod(shape) for shape in job.expected.shapes.values()),
        bytes=total,
        files=tuple(files),
        dropped=job.plan.dropped,
        ignored_keys=job.config.ignored_keys,
        kept=tuple(staying),
    )


class Foreseen(NamedTuple):
    """What a conversion would make: ``stored`` is each tensor's dtype, ``dtype`` the main one, ``nbytes`` of all weights, ``methods``
    those of quantized parameters."""

    model: Model
    config: ModelConfig
    stored: dict[str, str]
    dtype: str
    nbytes: int
    methods: Methods


def foresee(
    path: Path, host: PluginHost, dtype: str = "auto", *, quantize: str | None = None, keep_quantized: bool = False
) -> Foreseen:
    """What a conversion with these options would make, from headers alone.

    Raises:
        BestiaryError: the source could not be converted.
    """
    check_option(dtype)
    job = _prepare(path, host)
    planned = _planned(job, dtype, quantize, keep_quantized, host)
    stored = {slot.name: slot.dtype for group in planned.groups for slot in group.slots}
    methods = {name: one.method for name, one in planned.methods.items()}
    return Foreseen(job.model, job.config, stored, planned.dtype, total_bytes(planned.groups), methods)


def open_source(path: Path, host: PluginHost) -> Source:
    """The reader that recognizes ``path``, opened.

    Raises:
        MissingInputError: there is nothing at ``path``.
        DataError: no reader recognizes it, or more than one.
    """
    if not path.exists():
        raise MissingInputError("E-CONV-MISSING-SOURCE", path.name or str(path), "is not there")
    readers = [reader for reader in host.readers() if resolve(reader.sniff, needed_by=f"reader {reader.name}")(path)]
    known = ", ".join(reader.name for reader in host.readers())
    if len(readers) != 1:
        found = ", ".join(reader.name for reader in readers)
        problem = f"is recognized by several readers: {found}" if readers else "is recognized by no reader"
        raise DataError("E-CONV-READER", path.name, problem, expected=f"a checkpoint of one of: {known}")
    opened: Source = resolve(readers[0].reader, needed_by=f"reader {readers[0].name}")(path)
    return opened


def weight_map(model: Model, form: str, config: ModelConfig) -> WeightMap:
    """The family's weight map for a format, of models with this config.

    Raises:
        DataError: it has none.
    """
    if form not in model.weights:
        raise DataError(
            "E-CONV-FORMAT", f"model {model.name}", f"has no weight map for {form}", expected=", ".join(model.weights)
        )
    found: WeightMap | Callable[[ModelConfig], WeightMap] = resolve(
        model.weights[form], needed_by=f"model {model.name}"
    )
    return found if isinstance(found, WeightMap) else found(config)


def _prepare(path: Path, host: PluginHost) -> _Job:
    source = open_source(path, host)
    model = source.model(host)
    raw = source.config(model)
    config = parse_config(model, raw)
    if config.ignored_keys:
        log.warning(
            "config.json: keys that %s does not know are ignored: %s", model.name, ", ".join(config.ignored_keys)
        )
    check_token_ids(raw, config.vocab_size, "config.json")
    check_layers(config, len(source.tensors), source.name)
    expected = parameters(model, config)
    plan = make_plan(weight_map(model, source.format, config), expected, source.tensors, config)
    return _Job(source, model, raw, config, expected, plan)


def _group(transfer: Transfer, job: _Job, dtype: str, methods: Kept) -> Group:
    source, config = job.source, job.config
    if isinstance(source, QuantizedSource) and transfer.targets[0] in methods:
        return kept_group(transfer, job.expected.shapes, methods, source, config)
    shapes = [job.expected.shapes[target] for target in transfer.targets]
    chosen = dtype
    if dtype == "auto":
        stored = {source.stored_dtype(name) for name in transfer.sources}
        chosen = stored.pop() if len(stored) == 1 else "float32"

    def make() -> Sequence[Tensor]:
        # Cast first: a reordered copy of the narrower tensor is the smaller one.
        return transfer.operation.forward([source.read(name, chosen) for name in transfer.sources], shapes, config)

    slots = tuple(Slot(name, chosen, shape) for name, shape in zip(transfer.targets, shapes, strict=True))
    return Group(slots, make, ", ".join(f"{source.tensors[name].file}, tensor {name}" for name in transfer.sources))


class _Planned(NamedTuple):
    """What is written: the groups, the method of each quantized parameter, those of them that stay as they are in the source, and
    the main dtype."""

    groups: list[Group]
    methods: dict[str, Chosen]
    staying: Kept
    dtype: str


def _planned(job: _Job, dtype: str, quantize: str | None, keep_quantized: bool, host: PluginHost) -> _Planned:
    staying = kept(job.plan.transfers, job.expected.shapes, job.source, host) if keep_quantized else {}
    groups = [_group(transfer, job, dtype, staying) for transfer in job.plan.transfers]
    main = _main_dtype(groups, job, dtype)
    groups, made = _quantized(groups, job, quantize, host)
    if both := sorted(made.keys() & staying.keys()):
        raise ConfigError(
            "E-BUILD-QUANTIZATION", f"quantization {quantize!r}", f"{len(both)} weights are kept as they are quantized, and rules name them too",
            found=both[0], hint="leave out --keep-quantized, or name other modules: PATTERN=METHOD",
        )  # fmt: skip
    return _Planned(groups, {**made, **staying}, staying, main)


def _quantized(
    groups: list[Group], job: _Job, rules: str | None, host: PluginHost
) -> tuple[list[Group], dict[str, Chosen]]:
    """The groups with the weights quantized that ``rules`` name, each on its way into its file; and their methods."""
    if rules is None:
        return groups, {}
    from bestiary.core.quant.choose import uncalibrated

    methods = uncalibrated(rules, job.model, job.config, host)
    return list(quantized_groups(groups, methods)), methods


def _write(
    directory: Path, groups: Sequence[Group], allow_nonfinite: bool, progress: Progress
) -> dict[str, tuple[int, str]]:
    files = shards(groups)
    names = [f"weights-{number:05d}.safetensors" for number in range(1, len(files) + 1)]
    digests = write_shards(directory, files, names, metadata={}, allow_nonfinite=allow_nonfinite, progress=progress)
    write_index(directory, INDEX, files, names)
    return digests


def _main_dtype(groups: Sequence[Group], job: _Job, dtype: str) -> str:
    """The dtype that most bytes of plain parameters have; where all are quantized, what others would have."""
    sizes: dict[str, int] = {}
    for slot in (slot for group in groups for slot in group.slots if slot.name in job.expected.shapes):
        sizes[slot.dtype] = sizes.get(slot.dtype, 0) + slot.nbytes
    if not sizes:
        return job.source.stored_dtype(next(iter(job.source.tensors))) if dtype == "auto" else dtype
    return max(sorted(sizes), key=lambda one: sizes[one])


def _check_tied(job: _Job, dtype: str) -> None:
    for name, first in job.plan.equal:
        one, other = (
            job.source.read(n, job.source.stored_dtype(n) if dtype == "auto" else dtype) for n in (name, first)
        )
        if not equal(one, other):
            raise DataError(
                "E-CONV-TIED",
                f"{job.source.tensors[name].file}, tensor {name}",
                f"differs from {first}, and the config says that they are one",
                hint="is tie_word_embeddings wrong in config.json?",
            )


def _digest_sources(source: Source, progress: Progress) -> dict[str, FileDigest]:
    directory, names = source.files()
    total = sum((directory / name).stat().st_size for name in names)
    digests = {}
    with step(progress, "digest source", total, "B"):
        for name in names:
            size, sha256 = digest_file(directory, name, progress.advance)
            digests[name] = FileDigest(size=size, sha256=sha256)
    return digests


def _digests(directory: Path, known: dict[str, tuple[int, str]]) -> dict[str, FileDigest]:
    names = sorted(path.name for path in directory.iterdir())
    found = {name: known.get(name) or digest_file(directory, name) for name in names}
    return {name: FileDigest(size=size, sha256=sha256) for name, (size, sha256) in found.items()}


def _provenance(job: _Job, host: PluginHost, sources: dict[str, FileDigest]) -> Provenance:
    origin = host.origin(job.model)
    return Provenance(
        reader=job.source.format,
        sources=sources,
        converter=Software(distribution="bestiary", version=__version__),
        plugin=Software(distribution=origin.distribution, version=origin.version),
    )


def _check_generation(directory: Path, config: ModelConfig) -> None:
    name = "generation_config.json"
    if (directory / name).exists():
        found = read_json(directory, name, error=ConfigError)
        check_token_ids(found, config.vocab_size, name)
        check_defaults(found)
