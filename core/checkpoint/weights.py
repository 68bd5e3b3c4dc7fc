"""The weight files of a directory as one mapping from tensor names to memory-mapped tensors."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from bestiary.core.checkpoint.files import JSON_LIMIT, map_file, plain_name, read_json
from bestiary.core.checkpoint.mapped import MappedFiles
from bestiary.core.checkpoint.safetensors import TensorEntry, read_header
from bestiary.core.errors import DataError, MissingInputError

if TYPE_CHECKING:
    import torch

# In the order in which they are looked for: bestiary's own, then Hugging Face's.
INDEX = "weights.index.json"
HF_SINGLE = "model.safetensors"
HF_INDEX = "model.safetensors.index.json"
_UNSAFE = (".bin", ".pt", ".pth", ".ckpt", ".npz", ".h5", ".pkl", ".msgpack")


class Weights:
    """Tensors by name, from one safetensors file or an index and its shards. Opening reads headers only.

    Attributes:
        mapped: the files whose pages tensors share, as long as there are such tensors or this object.
    """

    def __init__(
        self, directory: Path, entries: Mapping[str, TensorEntry], sizes: Mapping[str, int], index: str | None
    ) -> None:
        self.directory = directory
        self.entries: Mapping[str, TensorEntry] = MappingProxyType(dict(entries))
        self.index = index
        self._sizes = dict(sizes)
        self._maps: dict[str, mmap.mmap] = {}
        self.mapped = MappedFiles()

    @classmethod
    def open(cls, directory: Path) -> Weights:
        """The weights of a checkpoint, an engine or a Hugging Face directory.

        Raises:
            MissingInputError: there are none, or shards are missing (all of them are named).
            DataError: a header, or the index, is wrong.
        """
        if os.path.lexists(directory / INDEX):
            return cls._open_index(directory, INDEX)
        if os.path.lexists(directory / HF_SINGLE):
            header = read_header(directory, HF_SINGLE)
            return cls(directory, header.entries, {HF_SINGLE: header.file_size}, None)
        if os.path.lexists(directory / HF_INDEX):
            return cls._open_index(directory, HF_INDEX)
        raise _no_weights(directory)

    @classmethod
    def _open_index(cls, directory: Path, index: str) -> Weights:
        places = read_json(directory, index, limit=JSON_LIMIT).get("weight_map")
        if not isinstance(places, dict):
            raise DataError("E-CKPT-INDEX", index, "has no weight_map object", found=type(places).__name__)
        shards = sorted({plain_name(shard, said_by=f"{index}, weight_map") for shard in places.values()})
        missing = [shard for shard in shards if not os.path.lexists(directory / shard)]
        if missing:
            names = ", ".join(missing[:10]) + (", …" if len(missing) > 10 else "")
            raise MissingInputError(
                "E-CKPT-SHARDS", index, f"{len(missing)} of {len(shards)} shards are missing: {names}"
            )
        entries: dict[str, TensorEntry] = {}
        sizes: dict[str, int] = {}
        for shard in shards:
            header = read_header(directory, shard)
            sizes[shard] = header.file_size
            _check_shard(index, shard, header.entries, places, entries)
            entries.update(header.entries)
        for name, shard in places.items():
            if name not in entries:
                raise DataError("E-CKPT-INDEX", f"{shard}, tensor {name}", f"is in {index} but not in the shard")
        return cls(directory, {name: entries[name] for name in places}, sizes, index)

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the weight files, and of their index if there is one."""
        return (*self._sizes, *([self.index] if self.index else []))

    def raw(self, name: str) -> memoryview:
        """A tensor's bytes, mapped from its file."""
        entry = self.entries[name]
        return memoryview(self._map(entry.file))[entry.offset : entry.offset + entry.nbytes]

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor on the CPU that shares the file's pages; it must not be written to."""
        import torch

        entry = self.entries[name]
        dtype: torch.dtype = getattr(torch, entry.dtype)
        if not entry.nbytes:
            return torch.empty(entry.shape, dtype=dtype)
        if entry.offset % dtype.itemsize:
            data = torch.frombuffer(self._map(entry.file), dtype=torch.uint8, count=entry.nbytes, offset=entry.offset)
            return data.clone().view(dtype).reshape(entry.shape)
        count = entry.nbytes // dtype.itemsize
        return torch.frombuffer(self._map(entry.file), dtype=dtype, count=count, offset=entry.offset).reshape(
            entry.shape
        )

    def forget(self, name: str) -> None:
        """Give back the memory of a tensor's pages; whoever reads it again reads the file."""
        entry = self.entries[name]
        if entry.file in self._maps:
            first = -(-entry.offset // mmap.PAGESIZE) * mmap.PAGESIZE
            last = (entry.offset + entry.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
            if first < last:
                self._maps[entry.file].madvise(mmap.MADV_DONTNEED, first, last - first)

    def let_go(self) -> None:
        """Keep no file mapped but for tensors that share its pages; what is read later is mapped anew."""
        self._maps.clear()

    def _map(self, shard: str) -> mmap.mmap:
        if shard not in self._maps:
            self._maps[shard] = map_file(self.directory, shard, self._sizes[shard], self.mapped)
        return self._maps[shard]


def _check_shard(
    index: str, shard: str, found: Iterable[str], places: Mapping[str, object], before: Mapping[str, TensorEntry]
) -> None:
    for name in found:
        if name in before:
            raise DataError("E-CKPT-INDEX", f"{shard}, tensor {name}", f"is also in {before[name].file}")
        if places.get(name) != shard:
            said = f"in {places[name]}" if name in places else "nowhere"
            raise DataError("E-CKPT-INDEX", f"{shard}, tensor {name}", f"is in the shard, and {index} has it {said}")


def _no_weights(directory: Path) -> MissingInputError:
    try:
        names = sorted(path.name for path in directory.iterdir())
    except OSError as e:
        return MissingInputError("E-CKPT-MISSING", directory.name, f"can't be listed: {e.strerror}")
    unsafe = [name for name in names if name.endswith(_UNSAFE)]
    if unsafe:
        return MissingInputError(
            "E-CKPT-PICKLE",
            unsafe[0],
            "is of a format that can run code when it is loaded, and bestiary does not read it",
            expected=HF_SINGLE,
            hint="get the model's safetensors files, or save it again with safe_serialization=True",
        )
    expected = f"{HF_SINGLE} or {HF_INDEX}"
    return MissingInputError(
        "E-CKPT-MISSING", directory.name, "holds no weights", found=", ".join(names[:8]) or "nothing", expected=expected
    )
