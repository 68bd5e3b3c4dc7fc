"""Whether two sides are one model: made of one source, or at least of equal configs and weights."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from bestiary.converters.cast import equal
from bestiary.converters.convert import convert
from bestiary.core.checkpoint.files import digest_file
from bestiary.core.checkpoint.manifest import FileDigest, Manifest
from bestiary.core.checkpoint.parameters import parse_config
from bestiary.core.checkpoint.weights import Weights
from bestiary.core.errors import BestiaryError
from bestiary.core.plugins import PluginHost
from bestiary.core.progress import Progress

#: So many fields of a config are named.
_FIELDS = 3


class Held(NamedTuple):
    """Weights on disk, of a checkpoint or an engine, and what its manifest says of them."""

    directory: Path
    manifest: Manifest


def other_source(ours: Held, source: Path, folder: Path, host: PluginHost, progress: Progress) -> str | None:
    """Why ours is not made of a Hugging Face directory; None: it is, or of one that makes the same.

    Args:
        folder: for a conversion of the directory, where its files are others than those of which ours was made.
    """
    made_of = ours.manifest.provenance.sources
    if made_of and all(_is(source, name, digest) for name, digest in made_of.items()):
        return None
    target = folder / "other"
    try:
        convert(source, target, host=host, progress=progress)
    except BestiaryError as error:
        return f"{source.name} holds other files than those of which ours was made, and can't be converted: {error.problem}"
    return other_model(ours, Held(target, Manifest.read(target)), source.name, host)


def other_model(ours: Held, theirs: Held, name: str, host: PluginHost) -> str | None:
    """In what two differ, the first thing that tells; None: in nothing.

    Args:
        name: of the other, for people.
    """
    differences = [*_configs(ours.manifest, theirs.manifest, host)] or [*_weights(ours, theirs)]
    return f"{name} is another checkpoint than ours: {'; '.join(differences)}" if differences else None


def _is(directory: Path, name: str, digest: FileDigest) -> bool:
    file = directory / name
    same_size = file.is_file() and file.stat().st_size == digest.size
    return same_size and digest_file(directory, name)[1] == digest.sha256


def _configs(ours: Manifest, theirs: Manifest, host: PluginHost) -> Iterator[str]:
    if ours.model != theirs.model:
        yield f"its model is {theirs.model}, ours {ours.model}"
        return
    model = host.model(ours.model)
    one, other = (parse_config(model, manifest.config).model_dump() for manifest in (ours, theirs))
    apart = [field for field in one if field in other and one[field] != other[field]]
    yield from (f"its {field} is {other[field]!r}, ours {one[field]!r}" for field in apart[:_FIELDS])


def _weights(ours: Held, theirs: Held) -> Iterator[str]:
    one, other = Weights.open(ours.directory), Weights.open(theirs.directory)
    names: Collection[str] = one.entries
    if ours.manifest.quantization or theirs.manifest.quantization:  # what is quantized in one only can't be compared
        names = [name for name in names if name in other.entries]
    apart = [name for name in names if name not in other.entries or not _equal(one, other, name)]
    if apart:
        yield f"{len(apart)} of {len(one.entries)} tensors of weights differ, the first is {apart[0]}"


def _equal(one: Weights, other: Weights, name: str) -> bool:
    """In the dtype of ours: a conversion may have rounded."""
    mine = one.tensor(name)
    same = equal(mine, other.tensor(name).to(mine.dtype))
    for weights in (one, other):
        weights.forget(name)
    return same
