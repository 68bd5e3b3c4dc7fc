"""Which module of transformers' model is which of the zoo's, told from the weight map."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from bestiary.converters.operations import Copy, Shape, Transpose
from bestiary.converters.weight_map import Transfer, WeightMap


def pairs(
    weights: WeightMap, shapes: Mapping[str, Shape], modules: Collection[str], tensors: Mapping[str, Shape]
) -> dict[str, str]:
    """Zoo module → module of the source's model, where both compute the same: each is made of exactly the weights of the other.

    Args:
        shapes: of the zoo's parameters.
        modules: names of the source model's modules.
        tensors: shapes of its parameters and buffers.
    """
    transfers = [_chosen(choices, tensors) for _, choices in weights.transfers(shapes) if choices]
    above: dict[str, list[Transfer]] = {}
    for transfer in transfers:
        for path in dict.fromkeys(path for target in transfer.targets for path in _ancestors(target)):
            above.setdefault(path, []).append(transfer)
    counterparts = {path: _counterpart(path, below, transfers) for path, below in above.items()}
    found = {path: theirs for path, theirs in counterparts.items() if theirs is not None and theirs in modules}
    while left := _left_over(found, shapes, tensors):  # parts of parts, too
        found |= left
    return found


def _chosen(choices: list[Transfer], tensors: Collection[str]) -> Transfer:
    """What the source has, or, where the module holds its weights otherwise than files do, what a file has."""
    return next((one for one in choices if all(name in tensors for name in one.sources)), choices[0])


def _ancestors(parameter: str) -> list[str]:
    parts = parameter.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts))]


def _counterpart(path: str, below: list[Transfer], transfers: list[Transfer]) -> str | None:
    """The module whose weights are those of all rows below a path."""
    if not all(target.startswith(f"{path}.") for transfer in below for target in transfer.targets):
        return None  # a tensor that is divided among modules belongs to none of them
    own = {target.rpartition(".")[0] == path for transfer in below for target in transfer.targets}
    if True in own and not all(isinstance(transfer.operation, Copy | Transpose) for transfer in below):
        return None  # its features come in another order
    sources = {name for transfer in below for name in transfer.sources}
    prefix = _common([name.split(".")[:-1] for name in sources])
    alike = {name for transfer in transfers for name in transfer.sources if name.startswith(f"{prefix}.")}
    return prefix if prefix and alike == sources else None


def _common(paths: list[list[str]]) -> str:
    shared = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def _left_over(found: Mapping[str, str], shapes: Mapping[str, Shape], tensors: Mapping[str, Shape]) -> dict[str, str]:
    """Parts of modules that are each other's, though the weight map does not say so: transformers may name the weights of a
    module otherwise than the files from which it loads them, as it does with experts.

    Of the parts of two modules that are one, those are paired whose weights have shapes that no other part has, and where
    one is left on either side, these two.
    """
    made: dict[str, str] = {}
    for path, theirs in found.items():
        ours = {part: _sizes(part, shapes) for part in _parts(path, shapes) - found.keys()}
        others = {part: _sizes(part, tensors) for part in _parts(theirs, tensors) - set(found.values())}
        for part, sizes in list(ours.items()):
            alike = [other for other, theirs_are in others.items() if theirs_are == sizes]
            if len(alike) == 1 and list(ours.values()).count(sizes) == 1:
                made[part] = alike[0]
        ours = {part: sizes for part, sizes in ours.items() if part not in made}
        others = {part: sizes for part, sizes in others.items() if part not in made.values()}
        if len(ours) == len(others) == 1:
            made[next(iter(ours))] = next(iter(others))
    return made


def _sizes(path: str, shapes: Mapping[str, Shape]) -> list[Shape]:
    """The shapes of all weights of a module."""
    return sorted(tuple(shape) for name, shape in shapes.items() if name.startswith(f"{path}."))


def _parts(path: str, names: Collection[str]) -> set[str]:
    """The modules just below a path that have weights."""
    depth = path.count(".") + 2
    below = (name.split(".") for name in names if name.startswith(f"{path}."))
    return {".".join(parts[:depth]) for parts in below if len(parts) > depth}
