"""Is a checkpoint or an engine whole: every byte as its manifest says, every parameter there in its shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestiary.core.checkpoint.checkpoint import check_sizes, is_checkpoint
from bestiary.core.checkpoint.files import JSON_LIMIT, digest_file, read_json
from bestiary.core.checkpoint.kv_scales import shapes_of
from bestiary.core.checkpoint.manifest import NAME, Manifest
from bestiary.core.checkpoint.parameters import (
    Parameters,
    check_layers,
    check_names,
    fields_of,
    parameters,
    parse_config,
)
from bestiary.core.checkpoint.weights import Weights
from bestiary.core.errors import DataError, MissingInputError, PluginError
from bestiary.core.progress import Progress, Silent, step

if TYPE_CHECKING:
    from bestiary.core.config import ModelConfig
    from bestiary.core.plugins import PluginHost

ENGINE = "engine.json"


@dataclass(frozen=True)
class VerifyReport:
    """What was found whole: ``kind`` is ``checkpoint`` or ``engine``."""

    kind: str
    model: str
    files: int
    bytes: int
    tensors: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def verify(
    directory: Path, *, host: PluginHost, progress: Progress | None = None, unserved: bool = False
) -> VerifyReport:
    """Check digests, headers and coverage of a checkpoint or engine directory.

    Args:
        unserved: check the digests even where no plugin serves the model or a method of its weights, before that is said.

    Raises:
        MissingInputError: it is neither, or a file is missing.
        DataError: a file differs from its digest, or the tensors from the model's parameters.
        PluginError: no plugin serves the model, or a method of its weights.
    """
    progress = progress or Silent()
    kind, manifest = _manifest(directory)
    check_sizes(directory, manifest, f"{'engine' if kind == 'engine' else 'bestiary'}.json")
    weights = Weights.open(directory)
    missing = None
    try:
        _check_tensors(manifest, weights, host)
    except PluginError as error:
        if not unserved:
            raise
        missing = error
    total = sum(digest.size for digest in manifest.files.values())
    with step(progress, "verify", total, "B") as note:
        for name, expected in manifest.files.items():
            size, sha256 = digest_file(directory, name, progress.advance)
            if (size, sha256) != (expected.size, expected.sha256):
                found, right = f"sha256 {sha256[:16]}…", f"{expected.sha256[:16]}…"
                raise DataError("E-CKPT-DIGEST", name, "differs from the manifest", found=found, expected=right)
        note.text = f"{len(manifest.files)} files, {len(weights.entries)} tensors"
    if missing is not None:
        raise missing
    return VerifyReport(kind, manifest.model, len(manifest.files), total, len(weights.entries))


def _check_tensors(manifest: Manifest, weights: Weights, host: PluginHost) -> None:
    model = host.model(manifest.model)
    check_names(model, manifest.model_format)
    config = parse_config(model, manifest.config)
    check_layers(config, len(weights.entries), "the checkpoint")
    wanted = expected_tensors(parameters(model, config), manifest.quantization, host)
    check_coverage(wanted, weights, config)


def _manifest(directory: Path) -> tuple[str, Manifest]:
    if is_checkpoint(directory):
        return "checkpoint", Manifest.read(directory)
    if (directory / ENGINE).is_file():
        inner = read_json(directory, ENGINE, limit=JSON_LIMIT).get("checkpoint")
        if not isinstance(inner, dict):
            raise DataError("E-ENGINE-MANIFEST", f"{ENGINE}, field checkpoint", "is missing")
        return "engine", Manifest.parse(inner, ENGINE)
    raise MissingInputError(
        "E-CKPT-MISSING", directory.name, "is neither a checkpoint nor an engine", expected=f"{NAME} or {ENGINE}"
    )


def expected_tensors(model: Parameters, quantization: Mapping[str, Any], host: PluginHost) -> Parameters:
    """The tensors of a checkpoint: the model's parameters, or what their quantization methods store in their place, and the
    calibrated scales of its caches.

    Raises:
        DataError: the manifest names a method for what is no parameter.
    """
    if not quantization:
        return model
    from bestiary.core.quant.choose import methods_in
    from bestiary.core.quant.method import layout_of
    from bestiary.core.quant.tensors import stored_name

    shapes = dict(model.shapes)
    for parameter, chosen in methods_in(quantization, host).items():
        if parameter not in shapes:
            raise DataError(
                "E-CKPT-MANIFEST", f"bestiary.json, quantization, {parameter}", "is no parameter of the model"
            )
        whole = shapes.pop(parameter)
        for name, stored in layout_of(chosen.method, whole, parameter).items():
            shapes[stored_name(parameter, name)] = stored.shape(whole)
    shapes |= shapes_of(quantization, model.caches)
    return Parameters(shapes, model.aliases, model.caches)


def check_coverage(expected: Parameters, weights: Weights, config: ModelConfig) -> None:
    """The stored tensors are the model's parameters: same names, same shapes."""
    for name, shape in expected.shapes.items():
        entry = weights.entries.get(name)
        if entry is None:
            raise DataError(
                "E-CKPT-COVERAGE",
                f"tensor {name}",
                "is missing, and the model needs it",
                expected=f"shape {list(shape)}",
            )
        if entry.shape != shape:
            fields = fields_of(config, shape)
            raise DataError(
                "E-CKPT-SHAPE",
                f"{entry.file}, tensor {name}",
                "has a wrong shape",
                found=str(list(entry.shape)),
                expected=f"{list(shape)}" + (f" from {fields}" if fields else ""),
            )
    for name in weights.entries:
        if name not in expected.shapes:
            raise DataError(
                "E-CKPT-COVERAGE", f"{weights.entries[name].file}, tensor {name}", "is none of the model's parameters"
            )
