"""Hugging Face directories: config.json and safetensors, single or sharded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestiary.converters.cast import FLOATS, cast
from bestiary.converters.source import SourceTensor
from bestiary.converters.tokenizer import copy_tokenizer
from bestiary.core.checkpoint.files import read_json
from bestiary.core.checkpoint.weights import Weights
from bestiary.core.errors import ConfigError, DataError, MissingInputError

if TYPE_CHECKING:
    from torch import Tensor

    from bestiary.core.plugins import PluginHost
    from bestiary.spec import Model


def sniff(path: Path) -> bool:
    """A directory that is neither a checkpoint nor an engine."""
    return path.is_dir() and not any((path / name).exists() for name in ("bestiary.json", "engine.json"))


class HFSource:
    """A Hugging Face directory (see :class:`bestiary.converters.source.Source`)."""

    format = "hf"

    def __init__(self, path: Path) -> None:
        self.name = path.resolve().name
        self._directory = path
        self._config = read_config(path)
        self._weights = Weights.open(path)
        self.tensors: Mapping[str, SourceTensor] = {
            name: SourceTensor(name, entry.dtype, entry.shape, entry.file)
            for name, entry in self._weights.entries.items()
        }

    def model(self, host: PluginHost) -> Model:
        named = self._config.get("architectures")
        if not isinstance(named, list) or len(named) != 1 or not isinstance(named[0], str):
            raise ConfigError(
                "E-CFG-FIELD",
                "config.json, field architectures",
                "does not name one architecture",
                found=repr(named)[:80],
            )
        model_type = self._config.get("model_type")
        return host.model_for_architecture(named[0], model_type=model_type if isinstance(model_type, str) else None)

    def config(self, model: Model) -> dict[str, Any]:
        return self._config

    def stored_dtype(self, tensor: str) -> str:
        entry = self.tensors[tensor]
        if entry.dtype not in FLOATS:
            raise DataError(
                "E-CONV-DTYPE",
                f"{entry.file}, tensor {tensor}",
                "has a dtype that is not kept as it is",
                found=entry.dtype,
                expected=", ".join(FLOATS),
                hint="pass --dtype float32" if entry.dtype == "float64" else None,
            )
        return entry.dtype

    def read(self, tensor: str, dtype: str) -> Tensor:
        entry = self.tensors[tensor]
        if entry.dtype not in (*FLOATS, "float64"):
            self.stored_dtype(tensor)
        return cast(self._weights.tensor(tensor), dtype, f"{entry.file}, tensor {tensor}")

    def files(self) -> tuple[Path, list[str]]:
        return self._directory, ["config.json", *self._weights.files]

    def write_tokenizer(self, directory: Path) -> None:
        copy_tokenizer(self._directory, directory)


def read_config(directory: Path) -> dict[str, Any]:
    """The object in a directory's config.json.

    Raises:
        ConfigError: it is missing, or no JSON object within limits.
    """
    try:
        return read_json(directory, "config.json", error=ConfigError)
    except MissingInputError:
        raise ConfigError(
            "E-CFG-MISSING",
            f"{directory.resolve().name}/config.json",
            "is not there",
            hint="give a Hugging Face directory or a GGUF file",
        ) from None
