"""Which prefixes were known and had to go, so that a request can be told "evicted" from "unseen". Imports no torch."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bestiary.core.runtime.prefixes import Node

_LOOKED_AT = 256  # most continuations of a prefix that are compared, the newest first


class Evictions:
    """The newest ``remembered`` prefixes that went."""

    def __init__(self, remembered: int) -> None:
        self._remembered = remembered
        self._parents: OrderedDict[bytes, bytes] = OrderedDict()  # hash → the hash of the prefix before it
        self._tokens: dict[bytes, dict[bytes, bytes]] = {}  # of a prefix's continuations, by their hash

    def add(self, node: Node) -> None:
        """A prefix went."""
        if not self._remembered or node.parent is None:
            return
        self.drop(node.key)
        self._parents[node.key] = node.parent.key
        self._tokens.setdefault(node.parent.key, {})[node.key] = _packed(node.tokens)
        if len(self._parents) > self._remembered:
            self.drop(next(iter(self._parents)))

    def drop(self, key: bytes) -> None:
        """A prefix is there again, or forgotten."""
        parent = self._parents.pop(key, None)
        if parent is not None:
            of_parent = self._tokens[parent]
            del of_parent[key]
            if not of_parent:
                del self._tokens[parent]

    def had(self, parent: Node, tokens: Sequence[int]) -> bool:
        """Whether a prefix went that begins with ``tokens`` after ``parent``."""
        known, wanted = self._tokens.get(parent.key), _packed(tokens)
        if known is None:
            return False
        return any(one.startswith(wanted) for one in islice(reversed(known.values()), _LOOKED_AT))


def _packed(tokens: Sequence[int]) -> bytes:
    return array("i", tokens).tobytes()
