"""Opening files that strangers wrote: only regular files of the model's own directory, JSON within limits."""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from bestiary.core.checkpoint.mapped import MappedFiles
from bestiary.core.errors import BestiaryError, DataError, MissingInputError, ReadWriteError

JSON_LIMIT = 64 << 20
CONFIG_LIMIT = 4 << 20
CHUNK = 4 << 20
# Private pages that are never written need no swap behind them; without the flag a file larger than memory is refused.
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


def plain_name(name: object, *, said_by: str) -> str:
    """``name`` if it is the bare name of a file, so that joining it to a directory can't leave the directory."""
    if (
        not isinstance(name, str)
        or name in ("", ".", "..")
        or len(name) > 255
        or any(c in "/\\:" or ord(c) < 32 for c in name)
    ):
        raise DataError(
            "E-CKPT-PATH",
            said_by,
            "names a file outside the model's directory",
            found=repr(name)[:80],
            expected="a bare file name",
        )
    return name


def open_file(directory: Path, name: str) -> BinaryIO:
    """Open a regular file of ``directory`` for reading, without blocking on FIFOs and devices.

    A symlink may lead elsewhere in the directory, or from a hub cache's ``snapshots/<revision>`` to its ``blobs``.

    Raises:
        MissingInputError: there is no such file.
        DataError: it is a directory, FIFO, socket or device, or a link that leaves the model's directory.
        ReadWriteError: it can't be opened.
    """
    path = directory / name
    try:
        target = path.resolve(strict=True)
        if not _inside(target, directory):
            raise DataError(
                "E-CKPT-LINK",
                name,
                "is a link that leaves the model's directory",
                expected="a file of the directory itself",
            )
        handle = os.open(target, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        raise MissingInputError("E-CKPT-MISSING", name, "is not there") from None
    except RuntimeError:
        # pathlib's word for a loop of links, up to Python 3.12.
        raise DataError("E-CKPT-LINK", name, "is a loop of links") from None
    except OSError as e:
        if path.is_symlink() and "level" in str(e):
            raise DataError("E-CKPT-LINK", name, "is a loop of links") from None
        if stat.S_ISSOCK(_mode(path)):
            raise _not_regular(name, "a socket") from None
        raise ReadWriteError("E-CKPT-READ", name, f"can't be opened: {e.strerror}") from None
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        kinds = (
            (stat.S_ISDIR, "a directory"),
            (stat.S_ISFIFO, "a FIFO"),
            (stat.S_ISCHR, "a device"),
            (stat.S_ISBLK, "a device"),
        )
        raise _not_regular(name, next((text for test, text in kinds if test(mode)), "something else"))
    return os.fdopen(handle, "rb")


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode
    except OSError:
        return 0


def _not_regular(name: str, found: str) -> DataError:
    return DataError("E-CKPT-FILE", name, "is not a file of bytes", found=found, expected="a regular file")


def _inside(target: Path, directory: Path) -> bool:
    home = directory.resolve()
    if target.is_relative_to(home):
        return True
    return home.parent.name == "snapshots" and target.is_relative_to(home.parent.parent / "blobs")


def read_json(
    directory: Path, name: str, *, limit: int = CONFIG_LIMIT, error: type[BestiaryError] = DataError
) -> dict[str, Any]:
    """The JSON object in a file. Refused as ``error``: over ``limit`` bytes, not an object, and what :func:`parse_json` refuses."""
    with open_file(directory, name) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise error("E-CKPT-JSON", name, "is too large", found=f"{size} bytes", expected=f"at most {limit}")
        data = file.read(limit + 1)
    value = parse_json(data, name, error=error)
    if not isinstance(value, dict):
        raise error("E-CKPT-JSON", name, "is not a JSON object", found=type(value).__name__)
    return value


def parse_json(data: bytes, name: str, *, error: type[BestiaryError] = DataError) -> Any:
    """Strict JSON: no duplicate keys, NaN, Infinity, numbers beyond a double, or nesting that exhausts the stack."""

    def refuse(problem: str, found: str | None = None) -> BestiaryError:
        return error("E-CKPT-JSON", name, problem, found=found)

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) != len(items):
            seen: set[str] = set()
            twice = next(key for key, _ in items if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise refuse("has a key twice", repr(twice)[:80])
        return result

    def constant(text: str) -> float:
        raise refuse("holds a number that JSON does not have", text)

    def number(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise refuse("holds a number beyond the range of a double", text[:40])
        return value

    if not data.strip():
        raise refuse("is empty")
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant, parse_float=number)
    except RecursionError:
        raise refuse("is nested too deeply") from None
    except UnicodeDecodeError as e:
        raise refuse("is not UTF-8", f"byte {data[e.start]:#04x} at offset {e.start}") from None
    except ValueError as e:
        raise refuse(f"is not JSON: {e}") from None


def digest_file(directory: Path, name: str, advance: Callable[[int], None] = lambda n: None) -> tuple[int, str]:
    """Size in bytes and sha256 of a file of ``directory``."""
    digest, size = hashlib.sha256(), 0
    with open_file(directory, name) as file:
        try:
            while block := file.read(CHUNK):
                digest.update(block)
                size += len(block)
                advance(len(block))
        except OSError as e:
            raise ReadWriteError("E-CKPT-READ", name, f"can't be read: {e.strerror}") from None
    return size, digest.hexdigest()


def map_file(directory: Path, name: str, size: int, watched: MappedFiles | None = None) -> mmap.mmap:
    """Map a file of ``directory`` that had ``size`` bytes when its header was read. The pages must not be written to.

    Args:
        watched: is told of it.
    """
    with open_file(directory, name) as file:
        # Reading a page beyond a file's end kills the process, so a file that shrank is refused here.
        found = os.fstat(file.fileno()).st_size
        if found != size:
            raise DataError(
                "E-CKPT-SIZE", name, "changed while it was open", found=f"{found} bytes", expected=str(size)
            )
        try:
            # Private and writable: torch asks for writable memory, and a stray write can't reach the file.
            flags, access = mmap.MAP_PRIVATE | _NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE
            mapping = mmap.mmap(file.fileno(), size, flags=flags, prot=access)
            if watched is not None:
                watched.add(name, mapping, file.fileno())
        except OSError as e:
            raise ReadWriteError("E-CKPT-READ", name, f"can't be mapped: {e.strerror}") from None
    return mapping


def finite(value: Any) -> Any:
    """A JSON value with null for every number that is not finite, which JSON has no word for.

    >>> finite({"a": [1.0, float("nan")], "b": (float("inf"),)})
    {'a': [1.0, None], 'b': [None]}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


def json_bytes(value: object) -> bytes:
    """How bestiary writes JSON: two spaces, UTF-8 as it is, keys in the order given, a newline at the end."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
