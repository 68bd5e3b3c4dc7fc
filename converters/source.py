"""What a reader of foreign checkpoints provides."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from bestiary.core.plugins import PluginHost
    from bestiary.spec import Model


class SourceTensor(NamedTuple):
    """A tensor as the source's header has it: ``dtype`` as stored (``"bfloat16"``, ``"Q4_1"``), ``shape`` row-major."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str


class GGUF(Protocol):
    """What a family's ``gguf_config`` is given.

    Attributes:
        name: the file's name, for errors.
        metadata: the file's key-value pairs.
        tensors: all tensors, by name; shapes are row-major.
    """

    name: str
    metadata: Mapping[str, Any]
    tensors: Mapping[str, SourceTensor]

    def read(self, tensor: str, dtype: str) -> Tensor:
        """A tensor, dequantized."""
        ...


class Source(Protocol):
    """A foreign checkpoint, opened by ``reader(path)``: headers are read and validated, data is not.

    Attributes:
        format: the key of the family's weight map, ``"hf"`` or ``"gguf"``.
        name: file or directory name, for errors.
        tensors: all tensors, by name.
    """

    format: str
    name: str
    tensors: Mapping[str, SourceTensor]

    def model(self, host: PluginHost) -> Model:
        """The family that serves this checkpoint."""
        ...

    def config(self, model: Model) -> dict[str, Any]:
        """The object of ``config.json``, as found or in its spelling."""
        ...

    def stored_dtype(self, tensor: str) -> str:
        """The dtype that ``--dtype auto`` keeps a tensor in."""
        ...

    def read(self, tensor: str, dtype: str) -> Tensor:
        """A tensor in a dtype of torch (by name); a tensor already stored so may share the file's pages."""
        ...

    def files(self) -> tuple[Path, list[str]]:
        """The directory of the source files and their names, for provenance."""
        ...

    def write_tokenizer(self, directory: Path) -> None:
        """Write tokenizer.json, its configs, the chat template and generation_config.json, those that there are."""
        ...


@runtime_checkable
class QuantizedSource(Source, Protocol):
    """A source of whose tensors some can be kept as they are quantized (``--keep-quantized``)."""

    def method(self, tensor: str) -> dict[str, Any] | None:
        """The quantization method whose layout holds a tensor's own values, as a manifest records it: ``{"method": "int4", "group": 32}``; None: there is none."""
        ...

    def stored(self, tensor: str) -> dict[str, Tensor]:
        """The tensors that this method stores, by name."""
        ...
