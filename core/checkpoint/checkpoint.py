"""A checkpoint on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bestiary.core.checkpoint.manifest import NAME, Manifest
from bestiary.core.checkpoint.weights import Weights
from bestiary.core.errors import DataError, MissingInputError


def is_checkpoint(path: Path) -> bool:
    """Whether ``path`` is a directory with a manifest; nothing more is looked at."""
    return (path / NAME).is_file()


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose manifest and weight headers have been read and agree with each other."""

    directory: Path
    manifest: Manifest
    weights: Weights

    @classmethod
    def open(cls, directory: Path) -> Checkpoint:
        """Read the manifest and the weights' headers.

        Raises:
            MissingInputError: ``directory`` is no checkpoint, or a file of it is missing.
            DataError: a file contradicts the manifest or itself.
        """
        if not is_checkpoint(directory):
            raise MissingInputError(
                "E-CKPT-MISSING",
                directory.name,
                "is not a checkpoint",
                expected=NAME,
                hint="make one with: bestiary convert SRC OUT",
            )
        manifest = Manifest.read(directory)
        check_sizes(directory, manifest)
        weights = Weights.open(directory)
        for file in weights.files:
            if file not in manifest.files:
                raise DataError(
                    "E-CKPT-MANIFEST", f"{NAME}, files", f"does not list {file}, which the weights' index names"
                )
        return cls(directory, manifest, weights)


def check_sizes(directory: Path, manifest: Manifest, listed_in: str = NAME) -> None:
    """Every file that ``listed_in`` lists is there and has its size: what can be checked without reading data."""
    missing = [name for name in manifest.files if not (directory / name).is_file()]
    if missing:
        names = ", ".join(missing[:10]) + (", …" if len(missing) > 10 else "")
        raise MissingInputError("E-CKPT-MISSING", listed_in, f"lists {len(missing)} files that are not there: {names}")
    for name, digest in manifest.files.items():
        size = (directory / name).stat().st_size
        if size != digest.size:
            raise DataError(
                "E-CKPT-SIZE", name, "differs from the manifest", found=f"{size} bytes", expected=str(digest.size)
            )
