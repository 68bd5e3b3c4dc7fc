"""A plugin's code as it lies on the disk, found and read without importing it."""

from __future__ import annotations

import hashlib
import marshal
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution
from importlib.util import MAGIC_NUMBER, cache_from_source, source_hash
from pathlib import Path
from typing import cast

from bestiary.core.plugins.discover import Candidate


def digest(candidates: Iterable[Candidate]) -> str:
    """``sha256:…`` over the names and contents of a distribution's files; empty where it has none that can be found.

    They are those in its RECORD and all that lie in the packages of its entry points, so that a file that was added or an
    editable installation counts too. Metadata and what Python compiled are left out: they differ between equal
    installations. Compiled files count that an import would run as something else than their source, or without any.

    Args:
        candidates: all plugins of the distribution.
    """
    files: dict[str, Path] = {}
    for candidate in candidates:
        if candidate.distribution is not None:
            files |= _recorded(candidate.distribution)
        files |= _packaged(candidate.module.partition(":")[0])
    files |= {f"{name}c": path for name, source in files.items() if (path := _other_code(source)) is not None}
    return f"sha256:{_sum(files)}" if files else ""


def spec_of(module: str) -> ModuleSpec | None:
    """Where an import would find the outermost package of ``module`` that is one: nothing is imported.

    Args:
        module: dotted; of ``space.package.plugin`` in a namespace package ``space`` it is the spec of ``space.package``.
    """
    path, name = None, ""
    for part in module.split("."):
        name = f"{name}.{part}" if name else part
        spec = _find(name, path)
        if spec is None or spec.origin is not None:
            return spec
        path = list(spec.submodule_search_locations or ())
    return None


def _find(name: str, path: list[str] | None) -> ModuleSpec | None:
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        if find is not None and (spec := find(name, path)) is not None:
            return cast(ModuleSpec, spec)
    return None


def _recorded(distribution: Distribution) -> dict[str, Path]:
    if distribution.read_text("RECORD") is None:  # only then does files list what is installed
        return {}
    listed = [file for file in distribution.files or () if _counts(file.parts) and file.parts[0] != ".."]
    return {file.as_posix(): Path(str(file.locate())) for file in listed if not file.parts[0].endswith(".dist-info")}


def _packaged(module: str) -> dict[str, Path]:
    spec = spec_of(module)
    if spec is None or spec.origin is None:
        return {}
    below = spec.name.replace(".", "/")
    if not spec.submodule_search_locations:
        file = Path(spec.origin)
        return {f"{below}{file.suffix}": file} if file.is_file() else {}
    return {f"{below}/{name}": path for root in spec.submodule_search_locations for name, path in _files(Path(root))}


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    """All files that count, by their names below ``root``; through links, since a checkout may consist of some."""
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            folders.clear()
            continue
        seen.add(real)
        for name in names:
            path = Path(folder, name)
            if _counts(path.relative_to(root).parts) and path.is_file():
                yield path.relative_to(root).as_posix(), path


def _counts(parts: tuple[str, ...]) -> bool:
    return "__pycache__" not in parts and not parts[0].startswith("__editable__")


def _other_code(source: Path) -> Path | None:
    """The compiled file that an import would run in place of ``source``, where it is not what that compiles to."""
    if source.suffix != ".py" or sys.implementation.cache_tag is None:
        return None
    compiled = Path(cache_from_source(str(source)))
    try:
        found, text, facts = compiled.read_bytes(), source.read_bytes(), source.stat()
    except OSError:
        return None
    if not _would_run(found, text, facts):
        return None
    try:
        same = marshal.loads(found[16:]) == compile(text, str(source), "exec", dont_inherit=True)
    except Exception:  # whatever it is, it is not the source's
        same = False
    return None if same else compiled


def _would_run(compiled: bytes, source: bytes, facts: os.stat_result) -> bool:
    """Whether an import takes the compiled file, by its header (PEP 552), without looking at the source's text."""
    if len(compiled) < 16 or compiled[:4] != MAGIC_NUMBER:
        return False
    flags = int.from_bytes(compiled[4:8], "little")
    if flags & 0b01:
        return not flags & 0b10 or compiled[8:16] == source_hash(source)
    stamp = (int(facts.st_mtime) & 0xFFFFFFFF, facts.st_size & 0xFFFFFFFF)
    return compiled[8:16] == b"".join(number.to_bytes(4, "little") for number in stamp)


def _sum(files: Mapping[str, Path]) -> str:
    whole = hashlib.sha256()
    for name, path in sorted(files.items()):
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "absent"
        whole.update(f"{name}\0{content}\n".encode())
    return whole.hexdigest()
