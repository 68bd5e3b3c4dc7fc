"""Who runs: the order of the queue, and what happens when blocks are short. By name, behind two small interfaces.

Neither can starve a request. An order gives every request a rank that never changes, so that only finitely many others
ever go before it; and who must give up his blocks is always the running request of the highest rank, never the lowest,
which therefore finishes, and the next lowest after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from bestiary.core.errors import ConfigError

T = TypeVar("T")

#: How many later arrivals of the next better class a request lets pass before it has waited long enough to be of it.
PATIENCE: Final = 256


@dataclass(frozen=True)
class Capacity:
    """What admission asks for.

    Args:
        promise: a request is admitted only when all the blocks it can ever need are free. Otherwise it is admitted when
            its tokens so far fit, and one that runs may be preempted: its blocks go, and it is computed anew later.
    """

    name: str
    promise: bool


#: A request's rank from its priority (lower is better) and its number of arrival.
Order = Callable[[int, int], float]


def first_come(priority: int, arrival: int) -> float:
    """By arrival."""
    return arrival


def by_priority(priority: int, arrival: int) -> float:
    """Classes by ``SamplingParams.priority``, each in the order of arrival. A class is worth ``PATIENCE`` arrivals, so that
    the lowest is late, but not for ever."""
    return priority * PATIENCE + arrival


CAPACITIES: Final[Mapping[str, Capacity]] = {
    "no-evict": Capacity("no-evict", promise=True),
    "max-utilization": Capacity("max-utilization", promise=False),
}
ORDERS: Final[Mapping[str, Order]] = {"first-come": first_come, "priority": by_priority}


def capacity(name: str) -> Capacity:
    """By name.

    Raises:
        ConfigError: there is none of that name.
    """
    return _known("capacity", name, CAPACITIES)


def order(name: str) -> Order:
    """By name.

    Raises:
        ConfigError: there is none of that name.
    """
    return _known("queue_order", name, ORDERS)


def _known(field: str, name: str, table: Mapping[str, T]) -> T:
    if not isinstance(name, str) or name not in table:
        raise ConfigError(
            "E-RUN-POLICY",
            field,
            "no such policy",
            found=repr(name),
            expected=" or ".join(table),
            hint=f"pass one of them as {field}=",
        )
    return table[name]
