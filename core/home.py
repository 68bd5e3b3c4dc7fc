"""BESTIARY_HOME: what ``run`` keeps between calls: checkpoints and engines, each named by what it was made from."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from bestiary.core.errors import MissingInputError, OutputError, ReadWriteError, UsageError

VARIABLE = "BESTIARY_HOME"
FORMAT = 1
RESERVE = 64 * 2**20

Kind = Literal["checkpoints", "engines"]
KINDS: tuple[Kind, ...] = ("checkpoints", "engines")


@dataclass(frozen=True)
class Entry:
    """One cached directory.

    Args:
        kind: ``checkpoints`` or ``engines``.
        name: its folder's name.
        path: the folder.
        source: what it was made from, as the user named it.
        size: bytes on disk; a file that an engine shares with its checkpoint counts in both.
        created: seconds since the epoch.
        complete: False while it is being made, or where that was interrupted.
    """

    kind: Kind
    name: str
    path: Path
    source: str
    size: int
    created: float
    complete: bool

    @property
    def age(self) -> float:
        """Seconds since it was made."""
        return max(0.0, time.time() - self.created)

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {**asdict(self), "path": str(self.path)}


class Home:
    """The cache folder. ``Home()`` is the user's: ``BESTIARY_HOME``, else ``~/.cache/bestiary``."""

    def __init__(self, root: Path | None = None) -> None:
        chosen = root or Path(os.environ.get(VARIABLE) or Path("~/.cache/bestiary"))
        self.root = chosen.expanduser().absolute()

    def place(self, kind: Kind, readable: str, identity: Mapping[str, Any]) -> Path:
        """Where the thing with this identity (anything JSON can hold) lies or will lie. Nothing is made."""
        text = json.dumps({"format": FORMAT, **identity}, sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", readable).strip("-.")[:60] or "model"
        return self.root / kind / f"{name}-{digest}"

    def is_complete(self, place: Path) -> bool:
        """Whether the entry was finished and checked, not merely written."""
        return place.is_dir() and self._card(place).is_file()

    def complete(self, place: Path, source: str) -> None:
        """Mark the entry as finished."""
        self._card(place).write_text(json.dumps({"source": source, "created": time.time()}), encoding="utf-8")

    def discard(self, place: Path) -> None:
        """Remove an entry, finished or not."""
        self._card(place).unlink(missing_ok=True)
        shutil.rmtree(place, ignore_errors=True)

    @contextmanager
    def making(self, place: Path) -> Iterator[None]:
        """Hold the entry, so that a second process waits for the first instead of making it again.

        Raises:
            OutputError: the cache folder can't be written.
        """
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            lock = self._beside(place, ".lock").open("a")
        except OSError as error:
            hint = f"set {VARIABLE} to a folder that you may write to"
            raise OutputError("E-HOME-WRITE", VARIABLE, f"can't be written: {error.strerror}", hint=hint) from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def entries(self) -> tuple[Entry, ...]:
        """All entries, the newest first."""
        found = [self._entry(kind, path) for kind in KINDS for path in self._folders(kind)]
        return tuple(sorted(found, key=lambda entry: -entry.created))

    def remove(self, names: Sequence[str]) -> tuple[Entry, ...]:
        """Remove entries by name (a beginning will do, if it fits the entries of one source only).

        Raises:
            MissingInputError: a name that fits nothing or several things; then nothing is removed.
        """
        entries = self.entries()
        chosen = [entry for name in names for entry in _matching(name, entries)]
        for entry in chosen:
            self.discard(entry.path)
        return tuple(dict.fromkeys(chosen))

    def remove_all(self) -> tuple[Entry, ...]:
        """Remove every entry and whatever an interrupted run left behind."""
        entries = self.entries()
        for kind in KINDS:
            shutil.rmtree(self.root / kind, ignore_errors=True)
        return entries

    def _folders(self, kind: Kind) -> list[Path]:
        folder = self.root / kind
        return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []

    def _entry(self, kind: Kind, path: Path) -> Entry:
        complete = self.is_complete(path)
        created, source = path.stat().st_mtime, "(unfinished)"
        if complete:
            try:
                card = json.loads(self._card(path).read_text(encoding="utf-8"))
                source, created = str(card["source"]), float(card["created"])
            except (OSError, ValueError, KeyError, TypeError):
                source = "(unknown)"
        return Entry(kind, path.name, path, source, folder_size(path), created, complete)

    def _card(self, place: Path) -> Path:
        return self._beside(place, ".json")

    def _beside(self, place: Path, suffix: str) -> Path:
        return place.parent / (place.name + suffix)


def _matching(name: str, entries: Sequence[Entry]) -> list[Entry]:
    exact = [entry for entry in entries if entry.name == name]
    found = exact or [entry for entry in entries if entry.name.startswith(name)]
    if not found:
        known = ", ".join(entry.name for entry in entries) or "nothing"
        raise MissingInputError("E-HOME-ENTRY", name, "no such entry in the cache", hint=f"it holds {known}")
    if len({entry.source for entry in found}) > 1:
        names = ", ".join(entry.name for entry in found)
        raise MissingInputError("E-HOME-ENTRY", name, "fits several entries", hint=f"give more of the name: {names}")
    return found


def folder_size(folder: Path) -> int:
    """Bytes in all regular files below ``folder``."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def file_identity(path: Path) -> list[Any]:
    """What changes when the model at ``path`` changes: each file's resolved path, size and modification time."""
    files = [path] if path.is_file() else sorted(one for one in path.iterdir() if one.is_file())
    return [[str(path.resolve())], *([one.name, one.stat().st_size, one.stat().st_mtime_ns] for one in files)]


def check_space(folder: Path, needed: int, purpose: str) -> None:
    """Make sure that ``needed`` bytes fit on the disk of ``folder`` before anything is written.

    Raises:
        OutputError: they don't; the arithmetic is in the error.
    """
    free = free_space(folder)
    if needed + RESERVE > free:
        hint = f"free some space, see 'bestiary cache ls', or set {VARIABLE} to another disk"
        found = f"{gib(free)} free"
        expected = f"{gib(needed)} + {gib(RESERVE)} reserve = {gib(needed + RESERVE)}"
        raise OutputError("E-HOME-SPACE", purpose, "not enough disk space", found=found, expected=expected, hint=hint)


def free_space(folder: Path) -> int:
    """Bytes that are free on the disk where ``folder`` lies or will lie.

    Raises:
        ReadWriteError: the disk does not say.
    """
    existing = existing_parent(folder)
    try:
        return shutil.disk_usage(existing).free
    except OSError as error:
        raise read_write_error(error, str(existing.name)) from error


def existing_parent(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    return next(parent for parent in (folder, *folder.parents) if parent.exists())


def read_write_error(error: OSError, subject: str) -> ReadWriteError:
    """An operating system's error as bestiary's, without host paths."""
    hint = "free some space and run it again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
    return ReadWriteError("E-IO", subject, error.strerror or type(error).__name__, hint=hint)


def gib(size: float) -> str:
    """Bytes for people.

    >>> gib(3 * 2**30), gib(5 * 2**20), gib(100)
    ('3.00 GiB', '5.0 MiB', '100 B')
    """
    if size >= 2**30:
        return f"{size / 2**30:.2f} GiB"
    if size >= 2**20:
        return f"{size / 2**20:.1f} MiB"
    return f"{size / 2**10:.1f} KiB" if size >= 2**10 else f"{size:.0f} B"


def bytes_of(size: int | str, subject: str) -> int:
    """A number of bytes, or of ``KiB``, ``MiB`` or ``GiB``.

    >>> bytes_of("1.5GiB", "--memory"), bytes_of(4096, "--memory")
    (1610612736, 4096)

    Raises:
        UsageError: it is neither, or not positive; naming ``subject``.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *(?:([KMG])iB)?", str(size).strip())
    unit = {"K": 2**10, "M": 2**20, "G": 2**30}
    value = int(float(match[1]) * unit.get(match[2], 1)) if match and not isinstance(size, bool) else 0
    if value <= 0:
        expected = "a positive number of bytes, or one with KiB, MiB or GiB"
        raise UsageError("E-USE-BYTES", subject, "is not a size", found=repr(size)[:40], expected=expected)
    return value
