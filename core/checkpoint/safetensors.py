"""The one reader and the one writer of the safetensors container.

Layout: 8 bytes little-endian header length, a JSON object padded with spaces, then the tensors' bytes without holes.
The header is validated in full, in plain Python, before any byte of data is looked at.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

from bestiary.core.checkpoint.files import CHUNK, open_file, parse_json
from bestiary.core.errors import DataError, ReadWriteError

HEADER_LIMIT = 100 << 20
METADATA_LIMIT = 16 << 20
TENSOR_LIMIT = 100_000
RANK_LIMIT = 8
NAME_LIMIT = 1024

# name in the file -> (torch's name, bytes per element)
DTYPES = {
    "BOOL": ("bool", 1),
    "U8": ("uint8", 1),
    "I8": ("int8", 1),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "F8_E8M0": ("float8_e8m0fnu", 1),
    "U16": ("uint16", 2),
    "I16": ("int16", 2),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "U32": ("uint32", 4),
    "I32": ("int32", 4),
    "F32": ("float32", 4),
    "U64": ("uint64", 8),
    "I64": ("int64", 8),
    "F64": ("float64", 8),
}
ITEMSIZE = dict(DTYPES.values())
_FILE_NAMES = {name: key for key, (name, _) in DTYPES.items()}


class TensorEntry(NamedTuple):
    """Where a tensor lies: ``dtype`` as torch names it, ``offset`` and ``nbytes`` in bytes from the file's beginning."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int
    nbytes: int


class Header(NamedTuple):
    entries: dict[str, TensorEntry]
    metadata: dict[str, str]
    file_size: int


def read_header(directory: Path, name: str) -> Header:
    """The validated header of a file of ``directory``.

    Raises:
        DataError: the file is no safetensors file, or its header contradicts itself or the file's size.
    """
    with open_file(directory, name) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            return _read(file, name, size)
        except OSError as e:
            raise ReadWriteError("E-CKPT-READ", name, f"can't be read: {e.strerror}") from None


def _read(file: BinaryIO, name: str, size: int) -> Header:
    start = file.read(64)
    hint = _foreign(start)
    if hint:
        raise DataError("E-CKPT-FOREIGN", name, "is not a safetensors file", found=hint[0], hint=hint[1])
    if size < 8:
        raise DataError("E-CKPT-HEADER", name, "is cut short", found=f"{size} bytes", expected="a header of at least 8")
    length = int.from_bytes(start[:8], "little")
    if length > HEADER_LIMIT:
        raise DataError(
            "E-CKPT-HEADER",
            name,
            "has an absurd header length",
            found=f"{length} bytes",
            expected=f"at most {HEADER_LIMIT}",
        )
    if 8 + length > size:
        raise DataError(
            "E-CKPT-HEADER", name, "is cut short", found=f"{size} bytes", expected=f"a header of {length} bytes"
        )
    file.seek(8)
    text = file.read(length)
    if not text.startswith(b"{") or not text.rstrip(b" ").endswith(b"}"):
        raise DataError(
            "E-CKPT-HEADER", name, "has a header that is not a JSON object padded with spaces", found=repr(text[:16])
        )
    # Counted before parsing, which takes seconds for a header of a hundred megabytes.
    count = text.count(b'"data_offsets"')
    if count > TENSOR_LIMIT:
        raise DataError(
            "E-CKPT-HEADER", name, "holds too many tensors", found=str(count), expected=f"at most {TENSOR_LIMIT}"
        )
    return _validate(parse_json(text, name), name, data_start=8 + length, file_size=size)


def _foreign(start: bytes) -> tuple[str, str] | None:
    text = start.lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer", "fetch the weights with: git lfs pull"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page", "the download failed and saved an error page; download the file again"
    if start.startswith(b"GGUF"):
        return "a GGUF file", "name it *.gguf and give its path"
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04")):
        return "a pickle of torch", "bestiary never loads pickles; use the model's safetensors files"
    return None


def _validate(header: Any, name: str, *, data_start: int, file_size: int) -> Header:
    if not isinstance(header, dict):
        raise DataError("E-CKPT-HEADER", name, "has a header that is not a JSON object", found=type(header).__name__)
    metadata = _metadata(header.pop("__metadata__", {}), name)
    data_size = file_size - data_start
    entries = {tensor: _entry(tensor, fields, name, data_start, data_size) for tensor, fields in header.items()}
    at = data_start
    for entry in sorted(entries.values(), key=lambda e: (e.offset, e.nbytes)):
        if entry.offset != at:
            problem = "overlaps the tensor before it" if entry.offset < at else "leaves a hole before it"
            found, expected = f"offset {entry.offset - data_start}", str(at - data_start)
            raise DataError("E-CKPT-OFFSETS", f"{name}, tensor {entry.name}", problem, found=found, expected=expected)
        at += entry.nbytes
    if at != file_size:
        found, expected = f"{file_size} bytes", f"{at} from its header"
        raise DataError("E-CKPT-SIZE", name, "is longer than its tensors", found=found, expected=expected)
    return Header(entries, metadata, file_size)


def _metadata(value: Any, name: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise DataError("E-CKPT-HEADER", f"{name}, __metadata__", "is not an object of strings")
    size = sum(len(k) + len(v) for k, v in value.items())
    if size > METADATA_LIMIT:
        raise DataError(
            "E-CKPT-HEADER",
            f"{name}, __metadata__",
            "is too large",
            found=f"{size} bytes",
            expected=f"at most {METADATA_LIMIT}",
        )
    return value


def _entry(tensor: str, fields: Any, file: str, data_start: int, data_size: int) -> TensorEntry:
    subject = f"{file}, tensor {tensor[:200]!r}"

    def wrong(problem: str, found: object = None, expected: str | None = None) -> DataError:
        return DataError(
            "E-CKPT-TENSOR", subject, problem, found=None if found is None else repr(found)[:80], expected=expected
        )

    if not tensor or len(tensor) > NAME_LIMIT:
        raise wrong("has a bad name", expected=f"1 to {NAME_LIMIT} characters")
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise wrong("has a bad description", fields, "dtype, shape and data_offsets")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise wrong("has an unknown dtype", dtype, "one of " + ", ".join(DTYPES))
    if not isinstance(shape, list) or len(shape) > RANK_LIMIT or not all(_natural(d) for d in shape):
        raise wrong("has a bad shape", shape, f"a list of at most {RANK_LIMIT} sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_natural(o) for o in offsets):
        raise wrong("has bad data_offsets", offsets, "two offsets in bytes")
    begin, end = offsets
    if end < begin:
        raise wrong("has reversed data_offsets", offsets)
    if end > data_size:
        raise wrong("reaches beyond the file, which is cut short", end, f"an end within the {data_size} bytes of data")
    torch_name, itemsize = DTYPES[dtype]
    nbytes = math.prod(shape) * itemsize
    if end - begin != nbytes:
        raise wrong("has a byte range that is not shape × dtype", end - begin, f"{nbytes} bytes for {shape} {dtype}")
    return TensorEntry(tensor, torch_name, tuple(shape), file, data_start + begin, nbytes)


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


class Slot(NamedTuple):
    """A tensor to be written: ``dtype`` as torch names it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEMSIZE[self.dtype]


class SafetensorsWriter:
    """Writes a file whose header is known first, tensor after tensor; nothing is held in memory.

    Tensors must be written in the plan's order. To keep each one aligned to its element size, put wider dtypes first.
    """

    def __init__(self, path: Path, plan: Sequence[Slot], metadata: Mapping[str, str] | None = None) -> None:
        self._pending = list(reversed(plan))
        self._name = path.name
        self._digest = hashlib.sha256()
        self._size = 0
        self._file = path.open("xb")
        self._put(_header(plan, metadata or {}))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def _put(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._size += len(data)

    def write(self, name: str, chunks: Iterable[memoryview]) -> None:
        """The next tensor's bytes, row-major and little-endian."""
        slot = self._pending.pop()
        written = 0
        for chunk in chunks:
            self._put(chunk)
            written += len(chunk)
        if slot.name != name or written != slot.nbytes:
            raise ValueError(f"{self._name}: wrote {written} bytes of {name}, planned {slot.nbytes} of {slot.name}")

    def finish(self) -> tuple[int, str]:
        """Flush to the disk; the file's size in bytes and its sha256."""
        if self._pending:
            raise ValueError(f"{self._name}: tensor {self._pending[-1].name} was planned and not written")
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._size, self._digest.hexdigest()


def _header(plan: Sequence[Slot], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for slot in plan:
        header[slot.name] = {
            "dtype": _FILE_NAMES[slot.dtype],
            "shape": list(slot.shape),
            "data_offsets": [at, at + slot.nbytes],
        }
        at += slot.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def chunked(data: memoryview) -> Iterable[memoryview]:
    """``data`` in pieces small enough that progress moves."""
    flat = data.cast("B") if data.nbytes else memoryview(b"")
    return (flat[at : at + CHUNK] for at in range(0, len(flat), CHUNK))
