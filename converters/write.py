"""Writing weights as they come: shards planned from shapes, each tensor made, checked, written and let go."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bestiary.converters.cast import check_finite, tensor_bytes
from bestiary.core.checkpoint.files import json_bytes
from bestiary.core.checkpoint.safetensors import ITEMSIZE, SafetensorsWriter, Slot, chunked
from bestiary.core.errors import OutputError
from bestiary.core.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

    from bestiary.core.quant.layout import Stored

SHARD_SIZE = 5_000_000_000


class Group(NamedTuple):
    """Tensors that are made together: where they go, how to make them (in the order of ``slots``), and from what."""

    slots: tuple[Slot, ...]
    make: Callable[[], Sequence[Tensor]]
    origin: str


def shards(groups: Sequence[Group], limit: int = SHARD_SIZE) -> list[list[Group]]:
    """Groups by file, in order; within a file wider dtypes come first, so that every tensor is aligned."""
    files: list[list[Group]] = [[]]
    size = 0
    for group in groups:
        nbytes = sum(slot.nbytes for slot in group.slots)
        if files[-1] and size + nbytes > limit:
            files.append([])
            size = 0
        files[-1].append(group)
        size += nbytes
    return [sorted(file, key=lambda group: -ITEMSIZE[group.slots[0].dtype]) for file in files]


def write_shards(
    directory: Path,
    files: Sequence[list[Group]],
    names: Sequence[str],
    *,
    metadata: dict[str, str],
    allow_nonfinite: bool,
    progress: Progress,
) -> dict[str, tuple[int, str]]:
    """Write each list of groups to the file of its name; size and sha256 by file."""
    digests = {}
    for groups, name in zip(files, names, strict=True):
        plan = [slot for group in groups for slot in group.slots]
        with SafetensorsWriter(directory / name, plan, metadata) as writer:
            for group in groups:
                _write_group(writer, group, allow_nonfinite, progress)
            digests[name] = writer.finish()
    return digests


def _write_group(writer: SafetensorsWriter, group: Group, allow_nonfinite: bool, progress: Progress) -> None:
    """Make and write; nothing of it is left when the next group is made."""
    for slot, tensor in zip(group.slots, group.make(), strict=True):
        if not allow_nonfinite and tensor.is_floating_point() and tensor.element_size() > 1:
            check_finite(tensor, f"{group.origin} (parameter {slot.name})")
        writer.write(slot.name, _advancing(tensor_bytes(tensor), progress))


def _advancing(data: memoryview, progress: Progress) -> Iterator[memoryview]:
    for chunk in chunked(data):
        yield chunk
        progress.advance(len(chunk))


def write_index(directory: Path, index: str, files: Sequence[list[Group]], names: Sequence[str]) -> None:
    """Which file has which tensor, in Hugging Face's format."""
    slots = [
        (slot, name) for groups, name in zip(files, names, strict=True) for group in groups for slot in group.slots
    ]
    total = sum(slot.nbytes for slot, _ in slots)
    places = {slot.name: name for slot, name in slots}
    (directory / index).write_bytes(json_bytes({"metadata": {"total_size": total}, "weight_map": places}))


def widest_first(layout: Mapping[str, Stored]) -> list[tuple[str, Stored]]:
    """A layout's tensors in an order in which each is aligned to its elements' size."""
    return sorted(layout.items(), key=lambda item: -ITEMSIZE[item[1].dtype])


def total_bytes(groups: Sequence[Group]) -> int:
    return sum(slot.nbytes for group in groups for slot in group.slots)


def check_place(source: Path, target: Path) -> None:
    """Refuse a target that is the source, lies in it or holds it."""
    one, other = source.resolve(), target.resolve()
    problem = None
    if one == other:
        problem = "is the input itself"
    elif one.is_dir() and other.is_relative_to(one):
        problem = f"lies in the input, {source.name}"
    elif one.is_relative_to(other):
        problem = f"holds the input, {source.name}"
    if problem is not None:
        raise OutputError("E-OUT-INPUT", target.name, problem, hint="choose a directory elsewhere")


def check_space(target: Path, needed: int) -> None:
    """Refuse before any byte is written what the disk can't hold."""
    import shutil

    place = target.absolute().parent
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise OutputError(
            "E-OUT-SPACE", target.name, "does not fit on the disk", found=f"{free} bytes free", expected=f"{needed}"
        )
