"""The header of a GGUF file, versions 2 and 3, walked within the file's bounds before anything is believed.

Layout: magic, version, counts; key-value pairs; a description of each tensor; padding; the tensors' data.
"""

from __future__ import annotations

import math
import mmap
import struct
from typing import Any, NamedTuple

from bestiary.core.errors import DataError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_TENSORS, _KEYS, _RANK, _NESTING = 100_000, 65_536, 4, 4
# The fewest bytes that a key-value pair and a tensor's description take.
_PAIR, _DESCRIPTION = 13, 32


class GGUFTensor(NamedTuple):
    """``shape`` row-major (the file's dimensions reversed), ``type`` the number of the block format, ``offset`` from the data's start."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int


class GGUFHeader(NamedTuple):
    metadata: dict[str, Any]
    tensors: dict[str, GGUFTensor]
    data_start: int


def read_gguf_header(data: mmap.mmap | bytes, name: str) -> GGUFHeader:
    """Parse the header of the file ``name``.

    Raises:
        DataError: no GGUF, an unknown version, a count or length that the file can't hold, or a key or name twice.
    """
    return _Walk(data, name).header()


class _Walk:
    def __init__(self, data: mmap.mmap | bytes, name: str) -> None:
        self.data, self.name, self.at = data, name, 0

    def wrong(self, problem: str, found: object = None, expected: str | None = None) -> DataError:
        return DataError(
            "E-GGUF-HEADER", self.name, problem, found=None if found is None else str(found)[:80], expected=expected
        )

    def take(self, size: int, what: str) -> bytes:
        if size > len(self.data) - self.at:
            left = f"{len(self.data) - self.at} bytes left of {len(self.data)}"
            raise self.wrong(f"is cut short or damaged: {what} does not fit", left, f"{size} bytes")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, code: str, what: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))[0]

    def text(self, what: str) -> str:
        data = self.take(self.number("Q", f"the length of {what}"), what)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise self.wrong(f"has {what} that is not UTF-8", data[:40]) from None

    def header(self) -> GGUFHeader:
        magic = self.take(4, "the magic")
        if magic != b"GGUF":
            raise self.wrong("is not a GGUF file: bad magic", repr(magic), repr(b"GGUF"))
        version = self.number("I", "the version")
        if version not in (2, 3):
            big = " (a big-endian file)" if version & 0xFFFF == 0 and version else ""
            raise self.wrong(f"has a version of GGUF that is not supported{big}", version, "2 or 3")
        tensors, pairs = self.number("Q", "the tensor count"), self.number("Q", "the key count")
        self.count("tensors", tensors, _TENSORS, _DESCRIPTION)
        self.count("keys", pairs, _KEYS, _PAIR)
        metadata: dict[str, Any] = {}
        for index in range(pairs):
            key = self.text(f"key {index}")
            if key in metadata:
                raise self.wrong("has a key twice", repr(key))
            metadata[key] = self.value(self.number("I", f"the type of {key}"), key)
        found: dict[str, GGUFTensor] = {}
        for index in range(tensors):
            tensor = self.tensor(index)
            if tensor.name in found:
                raise self.wrong("has a tensor twice", repr(tensor.name))
            found[tensor.name] = tensor
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise self.wrong("has a bad general.alignment", alignment, "a power of two")
        return GGUFHeader(metadata, found, -(-self.at // alignment) * alignment)

    def count(self, what: str, count: int, most: int, size: int) -> None:
        if count > most or count * size > len(self.data):
            expected = f"at most {min(most, len(self.data) // size)} in {len(self.data)} bytes"
            raise self.wrong(f"has an absurd number of {what}", count, expected)

    def value(self, kind: int, key: str, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind], f"the value of {key}")
        if kind == _STRING:
            return self.text(f"the value of {key}")
        if kind != _ARRAY or depth >= _NESTING:
            raise self.wrong(f"has a value of unknown type at {key}", kind)
        inner, length = self.number("I", f"the type of {key}"), self.number("Q", f"the length of {key}")
        if inner in _SCALARS:
            code = _SCALARS[inner]
            if length * struct.calcsize("<" + code) > len(self.data):
                raise self.wrong(f"has an absurd length at {key}", length)
            return list(struct.unpack(f"<{length}{code}", self.take(length * struct.calcsize("<" + code), key)))
        if length * 8 > len(self.data):
            raise self.wrong(f"has an absurd length at {key}", length)
        return [self.value(inner, key, depth + 1) for _ in range(length)]

    def tensor(self, index: int) -> GGUFTensor:
        name = self.text(f"the name of tensor {index}")
        rank = self.number("I", f"the rank of {name}")
        if not 1 <= rank <= _RANK:
            raise self.wrong(f"has a bad rank for tensor {name}", rank, f"1 to {_RANK}")
        shape = tuple(self.number("Q", f"the shape of {name}") for _ in range(rank))[::-1]
        if not all(shape) or math.prod(shape) >= 2**63:
            raise self.wrong(f"has a bad shape for tensor {name}", list(shape))
        return GGUFTensor(
            name, shape, self.number("I", f"the type of {name}"), self.number("Q", f"the offset of {name}")
        )
