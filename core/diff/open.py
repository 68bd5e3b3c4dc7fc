"""From what a person names to the two sides: an engine of ours, and what it is held against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bestiary.converters.convert import convert
from bestiary.core.checkpoint.parameters import parameters, parse_config
from bestiary.core.checkpoint.weights import Weights
from bestiary.core.config import ModelConfig
from bestiary.core.diff.random_weights import random_model
from bestiary.core.diff.strangers import Held, other_model, other_source
from bestiary.core.engine.build import unmeasured
from bestiary.core.engine.engine import EngineManifest
from bestiary.core.engine.options import AT_LOAD, BuildOptions
from bestiary.core.errors import ConfigError, UsageError
from bestiary.core.hf_directory import exported
from bestiary.core.opening import check_built
from bestiary.core.plugins import PluginHost
from bestiary.core.prepare import converted, prepare
from bestiary.core.program.calls import REFERENCE
from bestiary.core.progress import Progress, step
from bestiary.core.quant.choose import methods_in
from bestiary.core.sides.engine_side import EngineSide
from bestiary.core.sides.opening import loaded_side, transformers_side
from bestiary.core.sides.side import Side
from bestiary.core.sides.transformers_side import TransformersSide, check_known
from bestiary.core.source import Kind, Source, fetch, recognise


def references(host: PluginHost) -> dict[str, Any]:
    """Options of ``load_engine`` for all ops' references and no fusion, whatever kernels an engine was built with."""
    kernels = {op.name: REFERENCE for op in host.ops()}
    return {"kernels": kernels, "without_fusions": ("*",), "deterministic": False}


@dataclass(frozen=True)
class Request:
    """What a person asked for.

    Args:
        model: Hugging Face directory, GGUF file, hub id, checkpoint or engine.
        against: ``hf``, ``reference``, or what ``model`` may be.
        said: the build options that were named.
        reference: our side has all references, too.
        random: make weights from ``config.json`` and ``seed``.
    """

    model: str
    against: str = "hf"
    said: Mapping[str, Any] | None = None
    reference: bool = False
    random: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Ours:
    """An engine that can be loaded in many ways.

    Args:
        base: options of ``load_engine`` that hold in all of them.
        plain: the checkpoint whose weights were quantized on the way, where there is one.
    """

    directory: Path
    host: PluginHost
    base: Mapping[str, Any]
    label: str
    plain: Path | None = None

    @property
    def manifest(self) -> EngineManifest:
        """What ``engine.json`` says."""
        return EngineManifest.read(self.directory)

    def load(self, longest: int, kernels: Mapping[str, str] | None = None, **options: Any) -> EngineSide:
        """The engine with room for sequences of ``longest`` tokens.

        Args:
            kernels: over those of ``base``.
            options: of ``load_engine``, in place of those of ``base``.
        """
        merged = {**self.base, **options, "kernels": {**self.base.get("kernels", {}), **(kernels or {})}}
        return loaded_side(self.directory, self.host, longest, self.label, **merged)


@dataclass(frozen=True)
class Setting:
    """Both sides, not loaded yet.

    Args:
        source: the Hugging Face directory from which the model came; None where there is none.
        folder: for what has to be made on the way.
    """

    request: Request
    ours: Ours
    source: Path | None
    folder: Path
    progress: Progress

    def against(self, longest: int, device: torch.device) -> Side:
        """The side that ours is held against, with room for sequences of ``longest`` tokens.

        Raises:
            BestiaryError: of the kind that fits.
        """
        named, host = self.request.against, self.ours.host
        if named == "reference":
            label = f"{self.ours.label} in reference mode, float32"
            return loaded_side(self.ours.directory, host, longest, label, dtype="float32", **references(host))
        if named == "hf":
            return self._transformers(self.source or self._export(), device, exported=self.source is None)
        source = recognise(named, host)
        if source.kind == "engine" and source.path is not None:
            return self._same(loaded_side(source.path, host, longest, f"engine {source.name}"))
        if source.kind == "checkpoint" and source.path is not None:
            target = self.folder / "against"
            unmeasured(source.path, target, host=host, options=_small(self.ours.manifest.options))
            label = f"checkpoint {source.name} in reference mode, float32"
            return self._same(loaded_side(target, host, longest, label, dtype="float32", **references(host)))
        path = source.path or fetch(named, self.progress)
        if (path / "config.json").is_file():
            side = self._transformers(path, device, exported=False)
            self._check_sizes(side.module.config)
            return side
        made = prepare(path, host=host, options=_small(self.ours.manifest.options), progress=self.progress)
        return self._same(loaded_side(made, host, longest, f"engine of {source.name}"))

    def strangers(self, side: Side) -> str | None:
        """Why a side is not of one source with ours, as far as files tell; None: it is."""
        named, host = self.request.against, self.ours.host
        if named in ("hf", "reference"):
            return None
        ours, name = Held(self.ours.directory, self.ours.manifest.checkpoint), recognise(named, host).name
        if isinstance(side, EngineSide):
            directory = side.engine.directory
            return other_model(ours, Held(directory, EngineManifest.read(directory).checkpoint), name, host)
        path = recognise(named, host).path or fetch(named, self.progress)
        return other_source(ours, path, self.folder, host, self.progress)

    def _transformers(self, path: Path, device: torch.device, *, exported: bool) -> TransformersSide:
        manifest, host = self.ours.manifest.checkpoint, self.ours.host
        with step(self.progress, "transformers") as note:
            side = transformers_side(path, manifest, host, dtype=torch.float32, device=device)
            of = "an export of our weights, which can't show a wrong weight map" if exported else path.name
            side.label = note.text = f"{side.label}, on {of}"
        return side

    def plain_weights(self) -> Path | None:
        """A directory with the plain weights of ours: what it was made of, or, of the same model, the other side's; None: there is
        none, or ours has them itself, since it quantizes as it is loaded.

        Raises:
            BestiaryError: the other side's can't be converted.
        """
        ours, host, named = self.ours, self.ours.host, self.request.against
        if not methods_in(ours.manifest.checkpoint.quantization, host) or ours.plain is not None:
            return ours.plain
        if named in ("hf", "reference"):
            return None
        source = recognise(named, host)
        path = source.path or fetch(named, self.progress)
        if source.kind not in ("engine", "checkpoint"):
            path = converted(path, host=host, progress=self.progress)
        names = parameters(host.model(ours.manifest.checkpoint.model), self._config(ours.manifest)).shapes
        return path if names.keys() <= Weights.open(path).entries.keys() else None

    def _config(self, manifest: EngineManifest) -> ModelConfig:
        return parse_config(self.ours.host.model(manifest.checkpoint.model), manifest.checkpoint.config)

    def _export(self) -> Path:
        kind: Kind = "engine" if self.ours.plain is None else "checkpoint"
        path = self.ours.plain or self.ours.directory
        return exported(kind, path, self.folder, self.ours.host, self.progress)

    def _same(self, side: EngineSide) -> EngineSide:
        """A side of the same kind of model, or an error."""
        theirs = EngineManifest.read(side.engine.directory).checkpoint
        self._check_sizes(parse_config(self.ours.host.model(theirs.model), theirs.config))
        return side

    def _check_sizes(self, theirs: object) -> None:
        """Refuse a model of other sizes by its config."""
        manifest = self.ours.manifest.checkpoint
        ours = parse_config(self.ours.host.model(manifest.model), manifest.config)
        for name in ("vocab_size", "hidden_size", "num_hidden_layers"):
            found, expected = (getattr(config, name, None) for config in (theirs, ours))
            if found != expected:
                raise UsageError(
                    "E-DIFF-MODELS",
                    f"--against {self.request.against}",
                    f"is another model: its {name} differs",
                    found=str(found),
                    expected=str(expected),
                )


def open_sides(request: Request, *, host: PluginHost, folder: Path, progress: Progress) -> Setting:
    """Make our side's engine, or find it.

    Args:
        folder: for what has to be made on the way; it must stay while the sides are used.

    Raises:
        BestiaryError: of the kind that fits.
    """
    options = BuildOptions(**(request.said or {}))
    _check_degrees(options, request.model)
    source, path = _source(request, host, folder, progress)
    if request.against == "hf" and path is not None:
        check_known(path)  # before what takes long
    if request.random:
        made = folder / "random"
        assert path is not None
        convert(path, made, host=host, progress=progress)
        source = Source("checkpoint", made, source.name)
    if source.kind == "engine":
        assert source.path is not None
        check_built(source.path, request.said or {})
        directory, what = source.path, "engine"
    elif request.random or (request.reference and source.kind == "checkpoint"):
        directory, what = folder / "ours", "checkpoint" if request.reference else "engine of"
        assert source.path is not None
        unmeasured(source.path, directory, host=host, options=options)
    else:
        directory, what = prepare(path or request.model, host=host, options=options, progress=progress), "engine of"
    manifest = EngineManifest.read(directory)
    _check_degrees(manifest.options, source.name)
    at_load = {name: value for name, value in (request.said or {}).items() if name in AT_LOAD}
    base = {**at_load, **(references(host) if request.reference else {})}
    label = f"{what} {source.name}{' in reference mode' if request.reference else ''}"
    plain = None
    if options.quantization and source.kind != "engine":
        found = path or source.path
        assert found is not None
        plain = found if source.kind == "checkpoint" else converted(found, host=host, progress=progress)
    return Setting(request, Ours(directory, host, base, label, plain), path, folder, progress)


def _source(request: Request, host: PluginHost, folder: Path, progress: Progress) -> tuple[Source, Path | None]:
    """MODEL, and its Hugging Face directory where it has one."""
    if request.random:
        made = random_model(Path(request.model), folder / "hf", seed=request.seed)
        return Source("source", made, Path(request.model).resolve().name), made
    source = recognise(request.model, host)
    path = fetch(request.model, progress) if source.kind == "hub" else source.path
    is_hf = source.kind in ("source", "hub") and path is not None and (path / "config.json").is_file()
    return source, path if is_hf else None


def _small(options: BuildOptions) -> BuildOptions:
    """Options for another engine that is to run the same sequences."""
    return BuildOptions(device=options.device, block_size=options.block_size, max_seq_len=options.max_seq_len)


def _check_degrees(options: BuildOptions, subject: str) -> None:
    if options.tensor_parallel * options.pipeline_parallel > 1:
        raise ConfigError(
            "E-DIFF-RANKS",
            subject,
            "is divided among ranks, and a comparison runs in one process",
            found=f"tensor_parallel {options.tensor_parallel}, pipeline_parallel {options.pipeline_parallel}",
            expected="1 and 1",
            hint="compare an engine that is built without --tp and --pp",
        )
