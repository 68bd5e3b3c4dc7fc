"""GGUF files: every block format against the gguf library, every rule of the header, and random damage."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bestiary import BestiaryError, DataError
from bestiary.converters.gguf import GGUFSource, sniff
from bestiary.converters.gguf_header import read_gguf_header

Q = GGMLQuantizationType
SUPPORTED = [Q.F32, Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q4_K, Q.Q5_K, Q.Q6_K]


def blocks(kind: GGMLQuantizationType, rows: int, columns: int) -> np.ndarray:
    """Rows of blocks: quantized where the library can, else random bytes with finite scales."""
    random = np.random.default_rng(0)
    values = random.standard_normal((rows, columns)).astype(np.float32)
    try:
        return quantize(values, kind)
    except NotImplementedError:
        size, nbytes = GGML_QUANT_SIZES[kind]
        data = random.integers(0, 256, (rows, columns // size, nbytes), dtype=np.uint8)
        half = np.float16(0.01).tobytes()
        at = nbytes - 2 if kind is Q.Q6_K else 0
        data[..., at : at + 2] = np.frombuffer(half, np.uint8)
        if kind in (Q.Q4_K, Q.Q5_K):
            data[..., 2:4] = np.frombuffer(half, np.uint8)
        return data.reshape(rows, -1)


def write(path: Path, tensors: dict[str, tuple[np.ndarray, GGMLQuantizationType]]) -> Path:
    writer = GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 2)
    writer.add_array("tokenizer.ggml.tokens", ["a", "bß", ""])
    writer.add_array("numbers", [1.5, -2.0])
    writer.add_bool("flag", True)
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write(tmp_path / "small.gguf", {"a": (blocks(Q.Q4_0, 2, 64), Q.Q4_0), "b": (np.ones(5, np.float32), Q.F32)})


@pytest.mark.parametrize("kind", SUPPORTED, ids=lambda kind: kind.name)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_block_formats_read_as_the_library_reads_them(
    kind: GGMLQuantizationType, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bestiary.converters.gguf._CHUNK", 600)
    data = blocks(kind, 5, 512)
    source = GGUFSource(write(tmp_path / "m.gguf", {"t": (data, kind), "u": (data[:1], kind)}))
    assert source.tensors["t"].shape == (5, 512) and source.tensors["t"].dtype == kind.name
    expected = torch.from_numpy(dequantize(data, kind).astype(np.float32))
    assert expected.isfinite().all() and expected.std() > 0
    assert torch.equal(source.read("t", dtype), expected.to(getattr(torch, dtype)))


def test_metadata_is_read_by_type(small: Path) -> None:
    metadata = GGUFSource(small).metadata
    assert metadata["general.architecture"] == "llama" and metadata["llama.block_count"] == 2
    assert (
        metadata["tokenizer.ggml.tokens"] == ["a", "bß", ""]
        and metadata["numbers"] == [1.5, -2.0]
        and metadata["flag"] is True
    )


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ((Q.Q4_0, Q.F32), "bfloat16"),
        ((Q.F16, Q.F32), "float16"),
        ((Q.BF16, Q.F32), "bfloat16"),
        ((Q.F32, Q.F32), "float32"),
    ],
    ids=["quantized", "F16", "BF16", "F32"],
)
def test_automatic_dtype(kinds: tuple[GGMLQuantizationType, ...], expected: str, tmp_path: Path) -> None:
    source = GGUFSource(
        write(
            tmp_path / "m.gguf", {"w": (blocks(kinds[0], 4, 64), kinds[0]), "n": (blocks(kinds[1], 1, 64)[0], kinds[1])}
        )
    )
    assert {source.stored_dtype(name) for name in source.tensors} == {expected}


@pytest.mark.parametrize("kind", [Q.Q2_K, Q.Q3_K, Q.IQ4_NL, Q.I32, Q.F64], ids=lambda kind: kind.name)
def test_other_types_are_refused_by_tensor_and_type(kind: GGMLQuantizationType, tmp_path: Path) -> None:
    size, nbytes = GGML_QUANT_SIZES[kind]
    data = np.zeros((1, 256 // size * nbytes), np.uint8)
    path = tmp_path / "m.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_tensor("strange", data, raw_shape=data.shape, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(DataError, match=rf"m.gguf, tensor strange: has an unsupported type; found {kind.name}"):
        GGUFSource(path)


def _set(at: int, code: str, value: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:at] + struct.pack("<" + code, value) + data[at + struct.calcsize("<" + code) :]


def _name(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data.replace(struct.pack("<Q", len(old)) + old, struct.pack("<Q", len(new)) + new, 1)


def _after(name: bytes, skip: int, code: str, value: int) -> Callable[[bytes], bytes]:
    """Set a field of a tensor's description, ``skip`` bytes after its name."""
    return lambda data: _set(data.rindex(struct.pack("<Q", len(name)) + name) + 8 + len(name) + skip, code, value)(data)


BROKEN: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "is empty"),
    "three bytes": (lambda data: data[:3], "cut short"),
    "bad magic": (lambda data: b"GGML" + data[4:], "bad magic; found b'GGML'"),
    "version 1": (_set(4, "I", 1), "version of GGUF that is not supported; found 1, expected 2 or 3"),
    "version 99": (_set(4, "I", 99), "found 99"),
    "big endian": (_set(4, "I", 3 << 24), "big-endian"),
    "absurd tensor count": (_set(8, "Q", 2**60), f"absurd number of tensors; found {2**60}"),
    "absurd key count": (_set(16, "Q", 2**60), "absurd number of keys"),
    "more tensors than there are": (_set(8, "Q", 5), "GGUF|cut short|bad|unknown"),
    "absurd key length": (_set(24, "Q", 2**40), "cut short or damaged: key 0"),
    "key twice": (_name(b"llama.block_count", b"general.architecture"), "has a key twice|unknown type"),
    "tensor twice": (_name(b"b", b"a"), "has a tensor twice"),
    "rank 0": (_after(b"b", 0, "I", 0), "bad rank"),
    "rank 1000": (_after(b"b", 0, "I", 1000), "bad rank"),
    "size 0": (_after(b"b", 4, "Q", 0), "bad shape"),
    "size 2^63": (_after(b"b", 4, "Q", 2**63), "bad shape"),
    "unknown type": (_after(b"b", 12, "I", 999), "tensor b: has an unsupported type; found type 999"),
    "offset beyond the file": (_after(b"b", 16, "Q", 1 << 40), "tensor b: reaches beyond the file"),
    "offset not aligned": (_after(b"b", 16, "Q", 97), "tensor b: is not aligned"),
    "overlap": (_after(b"b", 16, "Q", 32), "tensor b: overlaps"),
    "rows of half blocks": (_after(b"a", 4, "Q", 48), "tensor a: has rows that are no whole Q4_0 blocks"),
    "data cut": (lambda data: data[: -(len(data) // 8)], "cut short"),
}


@pytest.mark.parametrize(("spoil", "problem"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_headers_are_refused(spoil: Callable[[bytes], bytes], problem: str, small: Path) -> None:
    content = spoil(small.read_bytes())
    small.write_bytes(content)
    with pytest.raises(DataError, match=problem) as error:
        GGUFSource(small)
    assert error.value.subject.startswith("small.gguf") and str(small.parent) not in str(error.value)


def test_every_truncation_is_refused(small: Path) -> None:
    content = small.read_bytes()
    header = read_gguf_header(content, "small.gguf")
    end = max(
        header.data_start + tensor.offset + (20 if tensor.name == "b" else 72) for tensor in header.tensors.values()
    )
    for size in range(0, end, 7):
        small.write_bytes(content[:size])
        with pytest.raises(DataError):
            GGUFSource(small)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1), byte=st.integers(0, 255))
def test_damaged_headers_are_refused_or_harmless(where: float, byte: int, small: Path) -> None:
    content = bytearray(small.read_bytes())
    start = read_gguf_header(bytes(content), "x").data_start if content[:4] == b"GGUF" else 400
    content[min(int(where * start), len(content) - 1)] = byte
    damaged = small.with_name("damaged.gguf")
    damaged.write_bytes(content)
    try:
        source = GGUFSource(damaged)
    except BestiaryError as error:
        assert isinstance(error, DataError)
        return
    for name, tensor in source.tensors.items():
        assert source.read(name, "float32").numel() == math.prod(tensor.shape)


def test_sniffing(small: Path, tmp_path: Path) -> None:
    renamed = tmp_path / "no-suffix"
    renamed.write_bytes(small.read_bytes())
    (tmp_path / "x.txt").write_text("GG")
    assert sniff(small) and sniff(renamed)
    assert not sniff(tmp_path / "x.txt") and not sniff(tmp_path) and not sniff(tmp_path / "gone")
