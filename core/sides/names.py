"""Which module of transformers' model is which of the zoo's, told from the weight map."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from bestiary.converters.operations import Copy, Shape, Transpose
from bestiary.converters.weight_map import Transfer, WeightMap


def pairs(
    weights: WeightMap, shapes: Mapping[str, Shape], modules: Collection[str], tensors: Collection[str]
) -> dict[str, str]:
    """Zoo module → module of the source's model, where both compute the same: each is made of exactly the weights of the other.

    Args:
        shapes: of the zoo's parameters.
        modules, tensors: names of the source model's modules, and of its parameters and buffers.
    """
    transfers = [_chosen(choices, tensors) for _, choices in weights.transfers(shapes) if choices]
    above: dict[str, list[Transfer]] = {}
    for transfer in transfers:
        for path in dict.fromkeys(path for target in transfer.targets for path in _ancestors(target)):
            above.setdefault(path, []).append(transfer)
    counterparts = {path: _counterpart(path, below, transfers) for path, below in above.items()}
    found = {path: theirs for path, theirs in counterparts.items() if theirs is not None and theirs in modules}
    return {**found, **_left_over(found, shapes, tensors)}


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


def _left_over(found: Mapping[str, str], shapes: Collection[str], tensors: Collection[str]) -> dict[str, str]:
    """Where all parts but one of a module are known on both sides, the two that are left are each other's.

    transformers may name the weights of a module otherwise than the files from which it loads them, as it does with experts.
    """
    made = {}
    for path, theirs in found.items():
        ours = _parts(path, shapes) - found.keys()
        others = _parts(theirs, tensors) - set(found.values())
        if len(ours) == len(others) == 1:
            made[ours.pop()] = others.pop()
    return made


def _parts(path: str, names: Collection[str]) -> set[str]:
    """The modules just below a path that have weights."""
    depth = path.count(".") + 2
    below = (name.split(".") for name in names if name.startswith(f"{path}."))
    return {".".join(parts[:depth]) for parts in below if len(parts) > depth}
