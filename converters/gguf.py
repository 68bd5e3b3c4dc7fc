"""GGUF files: our own header checks, the ``gguf`` library's block formats."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestiary.converters.cast import FLOATS, cast
from bestiary.converters.gguf_blocks import COLUMNS, METHODS, stored
from bestiary.converters.gguf_header import GGUFHeader, GGUFTensor, read_gguf_header
from bestiary.converters.source import SourceTensor
from bestiary.converters.tokenizer import gguf_tokenizer, missing_package
from bestiary.core.checkpoint.files import map_file, open_file
from bestiary.core.errors import DataError, MissingInputError
from bestiary.core.plugins import resolve

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from bestiary.core.plugins import PluginHost
    from bestiary.spec import Model

_PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_BLOCKS = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
# Elements dequantized together; the library's temporaries are a few times this, in float32.
_CHUNK = 1 << 20


def sniff(path: Path) -> bool:
    """A file with the name or the magic of a GGUF."""
    if not path.is_file():
        return False
    with open_file(path.resolve().parent, path.resolve().name) as file:
        return path.suffix == ".gguf" or file.read(4) == b"GGUF"


class GGUFSource:
    """A GGUF file (see :class:`bestiary.converters.source.Source`).

    Attributes:
        metadata: the file's key-value pairs.
    """

    format = "gguf"

    def __init__(self, path: Path) -> None:
        path = path.absolute()
        self.name = path.name
        self._directory = path.parent
        with open_file(self._directory, self.name) as file:
            size = file.seek(0, 2)
        if not size:
            raise DataError("E-GGUF-HEADER", self.name, "is empty")
        self._map = map_file(self._directory, self.name, size)
        self._header = read_gguf_header(self._map, self.name)
        self.metadata: Mapping[str, Any] = self._header.metadata
        self._types = _check_tensors(self._header, self.name, size)
        self.tensors: Mapping[str, SourceTensor] = {
            name: SourceTensor(name, self._types[name], tensor.shape, self.name)
            for name, tensor in self._header.tensors.items()
        }

    def model(self, host: PluginHost) -> Model:
        architecture = self.metadata.get("general.architecture")
        if not isinstance(architecture, str):
            raise DataError("E-GGUF-METADATA", f"{self.name}, key general.architecture", "is missing")
        return host.model_for_gguf(architecture, experts=bool(self.metadata.get(f"{architecture}.expert_count")))

    def config(self, model: Model) -> dict[str, Any]:
        if model.gguf_config is None:
            raise DataError("E-GGUF-MODEL", self.name, f"can't be read: model plugin {model.name} has no gguf_config")
        config: dict[str, Any] = resolve(model.gguf_config, needed_by=f"model {model.name}")(self)
        ids = self._token_ids()
        return {"architectures": [model.architectures[0]], **config, **ids}

    def _token_ids(self) -> dict[str, Any]:
        names = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}
        found = {ours: self.metadata.get(f"tokenizer.ggml.{theirs}") for ours, theirs in names.items()}
        turn_end = self.metadata.get("tokenizer.ggml.eot_token_id")
        if turn_end is not None and turn_end != found["eos_token_id"]:
            found["eos_token_id"] = [token for token in (found["eos_token_id"], turn_end) if token is not None]
        return {name: value for name, value in found.items() if value is not None}

    def stored_dtype(self, tensor: str) -> str:
        """One dtype for the file: bfloat16 when anything is quantized, else the dtype that most bytes have.

        GGUF writers widen vectors to float32 whatever the model's dtype was, so a vector's own type says nothing.
        """
        if any(kind not in _PLAIN for kind in self._types.values()):
            return "bfloat16"
        sizes = dict.fromkeys(_PLAIN.values(), 0)
        for name, info in self.tensors.items():
            sizes[_PLAIN[self._types[name]]] += math.prod(info.shape)
        return max(FLOATS, key=lambda dtype: sizes[dtype])

    def read(self, tensor: str, dtype: str) -> Tensor:
        import torch

        info, kind = self._header.tensors[tensor], self._types[tensor]
        subject = f"{self.name}, tensor {tensor}"
        if kind in _PLAIN:
            plain: torch.dtype = getattr(torch, _PLAIN[kind])
            start, count = self._header.data_start + info.offset, math.prod(info.shape)
            found = torch.frombuffer(self._map, dtype=plain, count=count, offset=start).reshape(info.shape)
            return cast(found, dtype, subject)
        return self._dequantize(info, kind, dtype, subject)

    def method(self, tensor: str) -> dict[str, Any] | None:
        """See :class:`bestiary.converters.source.QuantizedSource`; Q4_0, Q4_1 and Q8_0 have one."""
        return METHODS.get(self._types[tensor])

    def stored(self, tensor: str) -> dict[str, Tensor]:
        import torch

        info, kind = self._header.tensors[tensor], self._types[tensor]
        data = torch.from_numpy(self._blocks(info, kind).copy())
        return stored(data.reshape(*info.shape[:-1], info.shape[-1] // COLUMNS, -1), kind)

    def _blocks(self, info: GGUFTensor, kind: str) -> NDArray[np.uint8]:
        """The bytes of each row ``[…, bytes of a row]``."""
        import numpy as np
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
        rows = math.prod(info.shape) // info.shape[-1]
        row_bytes = info.shape[-1] // block * block_bytes
        start = self._header.data_start + info.offset
        return np.frombuffer(self._map, np.uint8, rows * row_bytes, start).reshape(rows, row_bytes)

    def _dequantize(self, info: GGUFTensor, kind: str, dtype: str, subject: str) -> Tensor:
        import torch
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        data, columns = self._blocks(info, kind), info.shape[-1]
        rows = len(data)
        result = torch.empty(rows, columns, dtype=getattr(torch, dtype))
        step = max(1, _CHUNK // columns)
        for at in range(0, rows, step):
            part = torch.from_numpy(dequantize(data[at : at + step], GGMLQuantizationType[kind]))
            result[at : at + step] = cast(part, dtype, subject)
        return result.reshape(info.shape)

    def files(self) -> tuple[Path, list[str]]:
        return self._directory, [self.name]

    def write_tokenizer(self, directory: Path) -> None:
        if "tokenizer.ggml.tokens" in self.metadata:
            gguf_tokenizer(self._directory / self.name, directory)
        ids = self._token_ids()
        if ids:
            (directory / "generation_config.json").write_text(json.dumps(ids, indent=2) + "\n")


def _check_tensors(header: GGUFHeader, name: str, size: int) -> dict[str, str]:
    """The block format's name of each tensor; every tensor lies in the file, aligned, overlapping no other."""
    try:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    except ImportError:
        raise missing_package("gguf", f"reading {name}") from None

    types: dict[str, str] = {}
    end = 0
    for tensor in sorted(header.tensors.values(), key=lambda tensor: tensor.offset):
        subject = f"{name}, tensor {tensor.name}"
        known = {kind.value: kind for kind in GGMLQuantizationType}
        kind = known.get(tensor.type)
        if kind is None or kind.name not in (*_PLAIN, *_BLOCKS):
            found = kind.name if kind else f"type {tensor.type}"
            raise DataError(
                "E-GGUF-TYPE", subject, "has an unsupported type", found=found, expected=", ".join((*_PLAIN, *_BLOCKS))
            )
        block, block_bytes = GGML_QUANT_SIZES[kind]
        if tensor.shape[-1] % block:
            raise DataError(
                "E-GGUF-SHAPE",
                subject,
                f"has rows that are no whole {kind.name} blocks",
                found=str(tensor.shape[-1]),
                expected=f"a multiple of {block}",
            )
        nbytes = math.prod(tensor.shape) // block * block_bytes
        if tensor.offset % 32 and tensor.offset % header.metadata.get("general.alignment", 32):
            raise DataError("E-GGUF-OFFSET", subject, "is not aligned", found=f"offset {tensor.offset}")
        if tensor.offset < end:
            raise DataError(
                "E-GGUF-OFFSET",
                subject,
                "overlaps the tensor before it",
                found=f"offset {tensor.offset}",
                expected=f"at least {end}",
            )
        end = tensor.offset + nbytes
        if header.data_start + end > size:
            raise DataError(
                "E-GGUF-SIZE",
                subject,
                "reaches beyond the file, which is cut short",
                found=f"{size} bytes",
                expected=f"at least {header.data_start + end}",
            )
        types[tensor.name] = kind.name
    if not types:
        raise MissingInputError("E-GGUF-SIZE", name, "holds no tensors")
    return types
