"""The header reader: every rule of the container, and random headers against the safetensors library."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bestiary import DataError
from bestiary.core.checkpoint.safetensors import DTYPES, SafetensorsWriter, Slot, read_header

FLOAT = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def container(header: object, data: bytes = bytes(8)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(**changes: object) -> bytes:
    return container({"t": {**FLOAT, **changes}})


CASES: dict[str, tuple[bytes, str]] = {
    "no bytes": (b"", "found 0 bytes, expected a header of at least 8"),
    "seven bytes": (bytes(7), "found 7 bytes"),
    "header length only": (struct.pack("<Q", 100), "cut short"),
    "absurd header length": (struct.pack("<Q", 2**63) + b"{}", "absurd header length"),
    "header over 100 MB": (struct.pack("<Q", 101 << 20) + b"{}", "at most 104857600"),
    "header is a list": (container([]), "not a JSON object"),
    "header is a number": (container(3), "not a JSON object"),
    "header is null": (container(None), "not a JSON object"),
    "header nested deeply": (container(b'{"a":' + b"[" * 100_000 + b"}"), "nested too deeply"),
    "leading space": (container(b" {}", b""), "padded with spaces"),
    "trailing NUL": (container(b"{}\0\0", b""), "padded with spaces"),
    "duplicate tensor": (container(b'{"t":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"t":{}}', b""), "key twice"),
    "unknown dtype": (tensor(dtype="F33"), "'t': has an unknown dtype; found 'F33'"),
    "dtype no string": (tensor(dtype=["F32"]), "unknown dtype"),
    "negative size": (tensor(shape=[-2]), "bad shape"),
    "float size": (tensor(shape=[2.0]), "bad shape"),
    "bool size": (tensor(shape=[True, 2]), "bad shape"),
    "string size": (tensor(shape=["2"]), "bad shape"),
    "size 2^63": (tensor(shape=[2**63]), "bad shape"),
    "rank 1000": (tensor(shape=[1] * 1000), "bad shape"),
    "shape no list": (tensor(shape=2), "bad shape"),
    "reversed offsets": (tensor(data_offsets=[8, 0]), "reversed"),
    "negative offset": (tensor(data_offsets=[-8, 0]), "bad data_offsets"),
    "one offset": (tensor(data_offsets=[8]), "bad data_offsets"),
    "float offset": (tensor(data_offsets=[0.0, 8]), "bad data_offsets"),
    "bool offset": (tensor(data_offsets=[False, 8]), "bad data_offsets"),
    "range is not shape times dtype": (tensor(shape=[3]), "not shape × dtype; found 8, expected 12 bytes"),
    "product overflows": (tensor(shape=[2**62, 2**62, 4]), "not shape × dtype"),
    "beyond the file": (container({"t": FLOAT}, bytes(7)), "reaches beyond the file"),
    "bytes after the last tensor": (container({"t": FLOAT}, bytes(9)), "longer than its tensors"),
    "no tensors but data": (container({}, bytes(1)), "longer than its tensors"),
    "hole": (container({"t": {**FLOAT, "data_offsets": [4, 12]}}, bytes(12)), "leaves a hole"),
    "overlap": (container({"t": FLOAT, "u": {**FLOAT, "data_offsets": [4, 12]}}, bytes(12)), "overlaps"),
    "same bytes twice": (container({"t": FLOAT, "u": FLOAT}), "overlaps"),
    "empty tensor inside another": (
        container({"t": FLOAT, "e": {"dtype": "U8", "shape": [0], "data_offsets": [4, 4]}}),
        "overlaps|hole",
    ),
    "missing field": (container({"t": {"dtype": "F32", "shape": [2]}}), "bad description"),
    "extra field": (tensor(extra=1), "bad description"),
    "tensor no object": (container({"t": 3}), "bad description"),
    "empty name": (container({"": FLOAT}), "bad name"),
    "long name": (container({"n" * 2000: FLOAT}), "bad name"),
    "metadata no object": (container({"__metadata__": [], "t": FLOAT}), "not an object of strings"),
    "metadata no strings": (container({"__metadata__": {"a": 1}, "t": FLOAT}), "not an object of strings"),
    "metadata 17 MB": (container({"__metadata__": {"a": "x" * (17 << 20)}, "t": FLOAT}), "__metadata__: is too large"),
    "git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "git lfs pull"),
    "web page": (b"<!DOCTYPE html><html>404</html>", "saved an error page"),
    "GGUF": (b"GGUF\3\0\0\0" + bytes(40), "GGUF file"),
    "torch pickle": (b"PK\x03\x04" + bytes(40), "never loads pickles"),
}


@pytest.mark.parametrize(("data", "problem"), CASES.values(), ids=CASES.keys())
def test_broken_containers_are_refused(data: bytes, problem: str, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(data)
    with pytest.raises(DataError, match=problem) as error:
        read_header(tmp_path, "w.safetensors")
    assert error.value.subject.startswith("w.safetensors")
    assert str(tmp_path) not in str(error.value)


def test_empty_and_rank_0_tensors_are_data(tmp_path: Path) -> None:
    header = {
        "scalar": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
        "empty": {"dtype": "F64", "shape": [3, 0], "data_offsets": [4, 4]},
        "void": {"dtype": "U8", "shape": [0], "data_offsets": [4, 4]},
    }
    (tmp_path / "w").write_bytes(container(header, bytes(4)))
    assert {name: entry.shape for name, entry in read_header(tmp_path, "w").entries.items()} == {
        "scalar": (),
        "empty": (3, 0),
        "void": (0,),
    }


def test_absurdly_many_tensors_are_refused_by_count(tmp_path: Path) -> None:
    one = b'"%d":{"dtype":"U8","shape":[],"data_offsets":[0,0]}'
    (tmp_path / "w").write_bytes(container(b"{" + b",".join(one % n for n in range(300_000)) + b"}", b""))
    with pytest.raises(DataError, match="too many tensors"):
        read_header(tmp_path, "w")


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12).filter(
    lambda n: n != "__metadata__"
)
NUMPY = {"uint8", "int8", "uint16", "int16", "float16", "uint32", "int32", "float32", "uint64", "int64", "float64"}
SLOTS = st.dictionaries(
    NAMES, st.tuples(st.sampled_from(sorted(DTYPES.values())), st.lists(st.integers(0, 4), max_size=4)), max_size=6
)
QUIET = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _write(path: Path, slots: dict[str, Any]) -> list[Slot]:
    path.unlink(missing_ok=True)
    plan = [Slot(name, dtype, tuple(shape)) for name, ((dtype, _), shape) in slots.items()]
    plan.sort(key=lambda slot: -dict(DTYPES.values())[slot.dtype])
    with SafetensorsWriter(path, plan, {"format": "pt"}) as writer:
        for number, slot in enumerate(plan):
            writer.write(slot.name, [memoryview(bytes([number % 2]) * slot.nbytes)])
        writer.finish()
    return plan


@QUIET
@given(slots=SLOTS)
def test_what_we_write_the_library_reads(slots: dict[str, Any], tmp_path: Path) -> None:
    from safetensors import deserialize

    path = tmp_path / "w"
    plan = _write(path, slots)
    found = dict(deserialize(path.read_bytes()))
    assert {name: tuple(view["shape"]) for name, view in found.items()} == {slot.name: slot.shape for slot in plan}
    assert all(bytes(found[slot.name]["data"]) == bytes([n % 2]) * slot.nbytes for n, slot in enumerate(plan))


@QUIET
@given(slots=SLOTS, data=st.data())
def test_what_the_library_writes_we_read(slots: dict[str, Any], data: st.DataObject, tmp_path: Path) -> None:
    from safetensors.numpy import save

    plain = {name: slot for name, slot in slots.items() if slot[0][0] in NUMPY}
    values = {
        name: np.frombuffer(data.draw(st.binary(min_size=n, max_size=n)), dtype).reshape(shape)
        for name, ((dtype, width), shape) in plain.items()
        for n in [math.prod(shape) * width]
    }
    path = tmp_path / "w"
    path.write_bytes(save(values, {"k": "v"}))
    header = read_header(tmp_path, "w")
    content = path.read_bytes()
    assert header.metadata == {"k": "v"}
    assert {n: content[e.offset : e.offset + e.nbytes] for n, e in header.entries.items()} == {
        n: value.tobytes() for n, value in values.items()
    }


@QUIET
@given(slots=SLOTS, where=st.floats(0, 1), byte=st.integers(0, 255), cut=st.booleans())
def test_damaged_bytes_are_refused_or_harmless(
    slots: dict[str, Any], where: float, byte: int, cut: bool, tmp_path: Path
) -> None:
    path = tmp_path / "w"
    _write(path, slots)
    content = bytearray(path.read_bytes())
    at = min(int(where * len(content)), len(content) - 1)
    if cut:
        del content[at:]
    else:
        content[at] = byte
    path.write_bytes(content)
    try:
        header = read_header(tmp_path, "w")
    except DataError:
        return
    assert all(entry.offset + entry.nbytes <= len(content) for entry in header.entries.values())


def test_the_writer_holds_the_caller_to_the_plan(tmp_path: Path) -> None:
    plan = [Slot("a", "float32", (2,))]
    with SafetensorsWriter(tmp_path / "w", plan) as writer, pytest.raises(ValueError, match="planned 8 of a"):
        writer.write("a", [memoryview(b"1234")])
    with SafetensorsWriter(tmp_path / "v", plan) as writer, pytest.raises(ValueError, match="planned and not written"):
        writer.finish()
