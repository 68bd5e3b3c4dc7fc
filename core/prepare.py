"""The staged workflow into the cache: fetch → convert → verify → build, doing only what isn't there yet."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bestiary.core.home import Home, check_space, existing_parent, file_identity, folder_size
from bestiary.core.plugins import PluginHost
from bestiary.core.plugins.kinds import BUILDING, CONVERTING
from bestiary.core.progress import Progress, Silent, step
from bestiary.core.source import Source, fetch, recognise
from bestiary.core.text.tokenizer import tokenizer_file

if TYPE_CHECKING:
    from bestiary.core.engine.options import BuildOptions


def prepare(
    model: str | Path,
    *,
    host: PluginHost,
    options: BuildOptions,
    convert_dtype: str = "auto",
    needs_tokenizer: bool = False,
    progress: Progress | None = None,
    home: Home | None = None,
) -> Path:
    """Make an engine of MODEL in the cache, or find the one made before.

    Args:
        model: a Hugging Face directory, a GGUF file, a hub id, a checkpoint, or an engine (given back as it is).
        options: how to build; part of what a cached engine is known by.
        convert_dtype: dtype of the converted weights.
        needs_tokenizer: refuse a model without one before anything is done.
        home: the cache; by default the user's.

    Returns:
        The engine's directory.

    Raises:
        MissingInputError: there is no such model, or it has no tokenizer.
        ConfigError: a device, kernel or quantization method that there is not; nothing was converted then.
    """
    reports, cache = progress or Silent(), home or Home()
    source = recognise(model, host)
    if source.kind == "engine":
        assert source.path is not None
        if needs_tokenizer:
            tokenizer_file(source.path)
        return source.path
    # Before anything is converted:
    if options.device != "auto":
        from bestiary.core import device as devices

        devices.choose(options.device)
    if options.kernels or options.quantization:
        from bestiary.core.engine.network import check_options

        check_options(options, host)
    path = source.path or fetch(str(model), reports)
    if needs_tokenizer:
        _check_tokenizer(path)
    checkpoint, verified = path, False
    if source.kind != "checkpoint":
        found = Source("source", path, source.name)
        checkpoint, verified = _checkpoint(found, str(model), host, convert_dtype, reports, cache, needs_tokenizer)
        if needs_tokenizer:
            tokenizer_file(checkpoint)
    return _engine(checkpoint, source.name, str(model), host, options, reports, cache, verified=verified)


def converted(path: Path, *, host: PluginHost, progress: Progress | None = None, home: Home | None = None) -> Path:
    """The checkpoint of a foreign model on this disk, in the dtype that it came in: made in the cache, or found there."""
    source = Source("source", path, recognise(path, host).name)
    return _checkpoint(source, str(path), host, "auto", progress or Silent(), home or Home(), needs_tokenizer=False)[0]


def _check_tokenizer(path: Path) -> None:
    """Refuse a directory without a tokenizer or a vocabulary that conversion makes one of; a file is its reader's matter."""
    from bestiary.converters.tokenizer import FOREIGN

    if path.is_dir() and not any((path / name).is_file() for name in FOREIGN):
        tokenizer_file(path)


class DiskNeeds(NamedTuple):
    """What a model still takes of the cache's disk.

    Attributes:
        built: its engine is there already.
        convert: bytes of a checkpoint that is to be made.
        copy: bytes of an engine's copy of its checkpoint's weights; mostly they are shared.
        folder: on the disk.
    """

    built: bool
    convert: int
    copy: int
    folder: Path


def disk_needs(source: Source, *, host: PluginHost, options: BuildOptions, home: Home | None = None) -> DiskNeeds:
    """What :func:`prepare` would write, from headers alone.

    Args:
        source: a local one.

    Raises:
        BestiaryError: it can't be converted.
    """
    assert source.path is not None
    cache, checkpoint = home or Home(), source.path
    if source.kind == "engine":
        return DiskNeeds(True, 0, 0, cache.root)
    if source.kind != "checkpoint":
        checkpoint = _checkpoint_place(source, host, "auto", cache)
        if not cache.is_complete(checkpoint):
            from bestiary.converters.convert import foresee

            return DiskNeeds(False, foresee(source.path, host).nbytes, 0, cache.root)
    place = _engine_place(checkpoint, source.name, host, options, cache)
    copy = folder_size(checkpoint) if _elsewhere(checkpoint, place) else 0
    built = cache.is_complete(place)
    return DiskNeeds(built, 0, 0 if built else copy, cache.root)


def _checkpoint(
    source: Source, label: str, host: PluginHost, dtype: str, progress: Progress, home: Home, needs_tokenizer: bool
) -> tuple[Path, bool]:
    """The checkpoint, and whether it has been verified here and now."""
    assert source.path is not None
    place = _checkpoint_place(source, host, dtype, home)
    with home.making(place):
        if home.is_complete(place):
            _reused(progress, "convert")
            return place, False
        from bestiary.converters.convert import convert
        from bestiary.core.checkpoint.verify import verify

        home.discard(place)
        convert(source.path, place, host=host, dtype=dtype, needs_tokenizer=needs_tokenizer, progress=progress)
        try:
            verify(place, host=host, progress=progress)
        except BaseException:
            home.discard(place)
            raise
        home.complete(place, label)
    return place, True


def _engine(
    checkpoint: Path,
    name: str,
    label: str,
    host: PluginHost,
    options: BuildOptions,
    progress: Progress,
    home: Home,
    *,
    verified: bool,
) -> Path:
    place = _engine_place(checkpoint, name, host, options, home)
    with home.making(place):
        if home.is_complete(place):
            _reused(progress, "build")
            return place
        from bestiary.core.engine.build import build

        home.discard(place)
        check_space(place, folder_size(checkpoint) if _elsewhere(checkpoint, place) else 0, f"building {name}")
        build(checkpoint, place, host=host, options=options, verified=verified, progress=progress)
        home.complete(place, label)
    return place


def _checkpoint_place(source: Source, host: PluginHost, dtype: str, home: Home) -> Path:
    assert source.path is not None
    identity = {"source": file_identity(source.path), "dtype": dtype, "lock": _lock(host, CONVERTING)}
    return home.place("checkpoints", source.name, identity)


def _engine_place(checkpoint: Path, name: str, host: PluginHost, options: BuildOptions, home: Home) -> Path:
    identity: dict[str, Any] = {
        "checkpoint": file_identity(checkpoint),
        "options": options.as_dict(),
        "lock": _lock(host, BUILDING),
    }
    return home.place("engines", name, identity)


def _elsewhere(checkpoint: Path, place: Path) -> bool:
    """Weights are hard-linked from a checkpoint on the same disk; from elsewhere they are copied."""
    return checkpoint.stat().st_dev != existing_parent(place).stat().st_dev


def _reused(progress: Progress, name: str) -> None:
    with step(progress, name) as note:
        note.text = "from the cache"


def _lock(host: PluginHost, kinds: frozenset[str]) -> dict[str, str]:
    """The versions of those distributions that take part, so that an unrelated new plugin leaves the cache valid."""
    taking_part = [one for one in host.records() if kinds & one.provides.keys()]
    return {
        **host.lock(kinds),
        **{one.module: _code(one.module) for one in taking_part if one.origin.distribution != "bestiary"},
    }


def _code(module: str) -> str:
    """A digest of the plugin's Python files' sizes and times: a plugin in development changes without a new version."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        return ""
    # The file itself, or the archive that it is imported from.
    found = next((path for path in (Path(file), *Path(file).parents) if path.is_file()), None)
    if found is None:
        return ""
    package = found == Path(file) and (found.parent / "__init__.py").exists()
    files = sorted(found.parent.glob("**/*.py")) if package else [found]
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
