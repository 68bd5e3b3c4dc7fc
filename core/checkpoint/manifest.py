"""``bestiary.json``: what a checkpoint is, where it came from, and the digest of each of its files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bestiary.core.checkpoint.files import JSON_LIMIT, json_bytes, plain_name, read_json
from bestiary.core.errors import DataError

NAME = "bestiary.json"
FORMAT = 1


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class FileDigest(_Strict):
    """Size in bytes and sha256 in hexadecimal."""

    size: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=re.compile("^[0-9a-f]{64}$").pattern)]


class Software(_Strict):
    """An installed distribution."""

    distribution: str
    version: str


class Provenance(_Strict):
    """What a checkpoint was made from and by: source files by name, the reader, the SDK and the model's plugin."""

    reader: str
    sources: dict[str, FileDigest]
    converter: Software
    plugin: Software


class Manifest(_Strict):
    """The contents of ``bestiary.json``.

    Args:
        format: number of this layout of directories and fields.
        model: the family's name among the plugins, ``llama``.
        model_format: number of the family's tensor names.
        architecture: the name in ``config.json``'s ``architectures``.
        config: ``config.json`` as found, or in its spelling where the source had none.
        dtype: the dtype that most of the weights' bytes have.
        quantization: empty, or what the quantization method says of each module.
        provenance: sources and software.
        files: digests of all files of the directory but this one.
    """

    format: int
    model: str
    model_format: int
    architecture: str
    config: dict[str, Any]
    dtype: str
    quantization: dict[str, Any]
    provenance: Provenance
    files: dict[str, FileDigest]

    @classmethod
    def parse(cls, raw: Mapping[str, Any], file: str = NAME) -> Manifest:
        """Check the object found in ``file``.

        Raises:
            DataError: a field is wrong, or a newer bestiary wrote it.
        """
        number = raw.get("format")
        if type(number) is int and number > FORMAT:
            raise DataError(
                "E-CKPT-FORMAT",
                f"{file}, field format",
                "was written by a newer bestiary",
                found=str(number),
                expected=f"at most {FORMAT}",
                hint="upgrade with: pip install -U bestiary",
            )
        try:
            manifest = cls.model_validate(dict(raw))
        except ValidationError as e:
            first = e.errors(include_url=False, include_context=False)[0]
            field = ".".join(str(part) for part in first["loc"])
            raise DataError(
                "E-CKPT-MANIFEST", f"{file}, field {field}", "is wrong", expected=str(first["msg"])
            ) from None
        for name in manifest.files:
            plain_name(name, said_by=f"{file}, files")
        return manifest

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        return cls.parse(read_json(directory, NAME, limit=JSON_LIMIT))

    def write(self, directory: Path) -> None:
        (directory / NAME).write_bytes(json_bytes(self.model_dump()))
