"""The weight map of a family: the zoo's modules → the source's, as data, used in both directions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bestiary.converters.operations import Operation, Rows, Shape, alternatives


class Transfer(NamedTuple):
    """Targets (the zoo's parameters) that one operation makes from ``sources``."""

    targets: tuple[str, ...]
    sources: tuple[str, ...]
    operation: Operation


class _Place(NamedTuple):
    """A row that serves a parameter: the layer indices and the suffix (``.weight``) that were matched."""

    row: str
    indices: tuple[int, ...]
    suffix: str


@dataclass(frozen=True, init=False)
class WeightMap:
    """Rows name modules, zoo → source, with ``{}`` for the layer index; ``.weight``, ``.bias`` and so on follow.

    A row's value is a source module, an operation on one, or a tuple of alternatives of which the source has one (the
    first is what export writes). A row may also name a parameter that belongs to no module of its own.

    Args:
        rows: zoo module → source.
        drop: source modules or tensors that carry nothing the model needs.
    """

    rows: Rows
    drop: tuple[str, ...]

    def __init__(self, rows: Rows, *, drop: Iterable[str] = ()) -> None:
        object.__setattr__(self, "rows", dict(rows))
        object.__setattr__(self, "drop", tuple(drop))
        object.__setattr__(
            self, "_patterns", [(row, _pattern(row + below)) for row in rows for below in self._below(row)]
        )

    def _below(self, row: str) -> tuple[str, ...]:
        modules = alternatives(self.rows[row])[0].modules
        return tuple(f".{name}" for name in modules) or ("",)

    def place(self, parameter: str) -> _Place | None:
        """The row that serves a parameter of the zoo."""
        module, _, suffix = parameter.rpartition(".")
        for candidate, rest in ((module, f".{suffix}"), (parameter, "")):
            for row, pattern in self._patterns:  # type: ignore[attr-defined]
                match = pattern.fullmatch(candidate)
                if match:
                    return _Place(row, tuple(int(index) for index in match.groups()), rest)
        return None

    def targets(self, place: _Place) -> tuple[str, ...]:
        """The parameters that the row fills there, in its operation's order."""
        module = place.row.format(*place.indices)
        return tuple(f"{module}{below}{place.suffix}" for below in self._below(place.row))

    def transfers(self, shapes: Mapping[str, Shape]) -> Iterator[tuple[tuple[str, ...], list[Transfer]]]:
        """For each group of parameters (``shapes`` by name) its alternatives; none where no row serves it."""
        done: set[str] = set()
        for parameter in shapes:
            if parameter in done:
                continue
            place = self.place(parameter)
            group = self.targets(place) if place else (parameter,)
            done.update(group)
            if place is None or not all(target in shapes for target in group):
                yield group, []
                continue
            wanted = [shapes[target] for target in group]
            choices = alternatives(self.rows[place.row])
            yield group, [Transfer(group, tuple(op.names(place.indices, place.suffix, wanted)), op) for op in choices]

    def drops(self, tensor: str) -> bool:
        """Whether the source's tensor is known to carry nothing the model needs."""
        return any(_pattern(name).fullmatch(part) for name in self.drop for part in (tensor, tensor.rpartition(".")[0]))


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(r"(\d+)".join(re.escape(part) for part in template.split("{}")))


def sources_of(transfers: Sequence[Transfer]) -> list[str]:
    """All source names of some alternatives, for an error."""
    return [name for transfer in transfers for name in transfer.sources]
