"""Directories and files that are absent or complete: written beside their place, flushed, and renamed at the end."""

from __future__ import annotations

import ctypes
import os
import re
import secrets
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bestiary.core.errors import OutputError, ReadWriteError

# A directory is overwritten only when it holds one of these: a slip of the finger must not cost someone's home.
_OURS = ("bestiary.json", "engine.json", "config.json")
_OVERWRITE = "choose another name, or pass --overwrite"


@contextmanager
def new_directory(target: Path, *, overwrite: bool = False, hint: str = _OVERWRITE) -> Iterator[Path]:
    """A temporary sibling of ``target`` to write into; it becomes ``target`` when the block ends well.

    Whatever happens, ``target`` is absent (or, with ``overwrite``, the old one) or complete. Temporary directories that
    dead processes of this machine left beside it are removed.

    Args:
        hint: what to do about a target that has files, for a caller that offers no ``overwrite``.

    Raises:
        OutputError: ``target`` exists, another process made it meanwhile, or its parent can't be written to.
        ReadWriteError: writing failed half way.
    """
    target = Path.cwd() / target
    check_target(target, overwrite=overwrite, hint=hint)
    with scratch_beside(target) as temporary:
        yield temporary
        _flush(temporary)
        _commit(temporary, target, overwrite=overwrite)


@contextmanager
def scratch_beside(target: Path) -> Iterator[Path]:
    """A temporary directory on the disk of ``target``, gone when the block ends.

    Raises:
        OutputError: it can't be made.
        ReadWriteError: the block failed to read or write.
    """
    target = Path.cwd() / target
    temporary = _temporary(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(target)
        temporary.mkdir()
    except OSError as e:
        raise OutputError("E-OUT-CREATE", target.name, f"can't be created: {e.strerror}") from None
    try:
        yield temporary
    except OSError as e:
        name = Path(os.fsdecode(e.filename)).name if e.filename else target.name
        raise ReadWriteError("E-OUT-WRITE", name, f"writing failed: {e.strerror or e}") from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def new_file(target: Path, content: bytes) -> None:
    """Write a file that is whole from the moment it is there; one of that name is replaced.

    Raises:
        OutputError: it can't be written.
    """
    target = Path.cwd() / target
    temporary = _temporary(target)
    try:
        temporary.write_bytes(content)
        _sync(temporary)
        temporary.replace(target)
    except OSError as e:
        raise OutputError("E-OUT-FILE", target.name, f"can't be written: {e.strerror}") from e
    finally:
        temporary.unlink(missing_ok=True)


def check_file(target: Path) -> None:
    """Refuse, before long work, a place where :func:`new_file` could not write (OutputError)."""
    target = Path.cwd() / target
    if target.is_dir():
        raise OutputError("E-OUT-FILE", target.name, "can't be written: Is a directory")
    temporary = _temporary(target)
    try:
        temporary.touch()
    except OSError as e:
        raise OutputError("E-OUT-FILE", target.name, f"can't be written: {e.strerror}") from e
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_target(target: Path, *, overwrite: bool, hint: str = _OVERWRITE) -> None:
    """Refuse a target that :func:`new_directory` would refuse; an empty directory is as good as none."""
    if not os.path.lexists(target):
        return
    if target.is_symlink() or not target.is_dir():
        raise OutputError("E-OUT-EXISTS", target.name, "exists and is not a directory")
    if not any(target.iterdir()):
        return
    if not overwrite:
        raise OutputError("E-OUT-EXISTS", target.name, "exists and is not empty", hint=hint)
    if not any((target / name).is_file() for name in _OURS):
        raise OutputError(
            "E-OUT-FOREIGN",
            target.name,
            "is not overwritten: it holds no model",
            expected=" or ".join(_OURS),
            hint="remove it yourself",
        )


def _machine() -> str:
    # A process id means something on one machine only, and containers that share a volume have names of their own.
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:64]


def _temporary(target: Path) -> Path:
    return target.parent / f".{target.name}.{_machine()}.{os.getpid()}.{secrets.token_hex(4)}.tmp"


def _remove_stale(target: Path) -> None:
    name = re.compile(rf"\.{re.escape(target.name)}\.{re.escape(_machine())}\.(\d+)\.[0-9a-f]{{8}}\.tmp")
    for path in target.parent.iterdir():
        match = name.fullmatch(path.name)
        if match and not _alive(int(match[1])):
            shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _flush(directory: Path) -> None:
    for root, _, files in os.walk(directory, topdown=False):
        for name in files:
            _sync(Path(root) / name)
        _sync(Path(root))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _commit(temporary: Path, target: Path, *, overwrite: bool) -> None:
    try:
        # Succeeds on a target that is absent or an empty directory, and on no other.
        temporary.rename(target)
    except OSError as e:
        if not os.path.lexists(target):
            raise
        if not overwrite:
            raise OutputError("E-OUT-EXISTS", target.name, "was made by another process meanwhile") from e
        check_target(target, overwrite=True)
        if not _exchange(temporary, target):
            aside = _temporary(target)
            target.rename(aside)
            temporary.rename(target)
            shutil.rmtree(aside, ignore_errors=True)
    _sync(target.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two directories in one step where the system can."""
    if sys.platform != "linux":
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    at_cwd, exchange = -100, 2
    return bool(renameat2(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), exchange) == 0)
