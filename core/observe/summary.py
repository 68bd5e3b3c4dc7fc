"""Sums over observed calls: by op, and by op and kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bestiary.core.observe.calls import Call
from bestiary.core.observe.roofs import Roofs


@dataclass(frozen=True)
class Row:
    """Calls of one name.

    Args:
        share: of the time in all calls.
        flops: None where one of the calls does not say.
        roof: the fraction of the device's roof: the time of calls that touch it, memory's or arithmetic's as each call has
            it, over the time there was. None where no time passed.
    """

    name: str
    calls: int
    seconds: float
    share: float
    flops: int | None
    bytes: int
    roof: float | None

    @property
    def bandwidth(self) -> float:
        """Bytes a second."""
        return self.bytes / self.seconds if self.seconds else 0.0

    @property
    def rate(self) -> float | None:
        """Flops a second."""
        return None if self.flops is None or not self.seconds else self.flops / self.seconds

    @property
    def intensity(self) -> float | None:
        """Flops a byte."""
        return None if self.flops is None or not self.bytes else self.flops / self.bytes


def by_op(calls: Iterable[Call], roofs: Roofs) -> list[Row]:
    """A row an op, the one that took longest first."""
    return _rows(calls, roofs, lambda call: call.op)


def by_kernel(calls: Iterable[Call], roofs: Roofs) -> list[Row]:
    """A row for each kernel of each op, ``linear=onednn``."""
    return _rows(calls, roofs, lambda call: f"{call.op}={call.kernel}")


def _rows(calls: Iterable[Call], roofs: Roofs, name: Callable[[Call], str]) -> list[Row]:
    groups: dict[str, list[Call]] = {}
    for call in calls:
        groups.setdefault(name(call), []).append(call)
    whole = sum(call.seconds for members in groups.values() for call in members)
    rows = [_row(name, members, whole, roofs) for name, members in groups.items()]
    return sorted(rows, key=lambda row: -row.seconds)


def _row(name: str, calls: list[Call], whole: float, roofs: Roofs) -> Row:
    seconds, nbytes = sum(call.seconds for call in calls), sum(call.bytes for call in calls)
    said = [call.flops for call in calls if call.flops is not None]
    flops = sum(said) if len(said) == len(calls) else None
    share = seconds / whole if whole else 0.0
    least = sum(roofs.least_seconds(call.flops, call.bytes) for call in calls)
    return Row(name, len(calls), seconds, share, flops, nbytes, least / seconds if seconds else None)
