"""Which prefixes were known and had to go, so that a request can be told "evicted" from "unseen". Imports no torch."""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bestiary.core.runtime.prefixes import Node


class Evictions:
    """The newest ``remembered`` prefixes that went."""

    def __init__(self, remembered: int) -> None:
        self._remembered = remembered
        # By its hash: the hash of the prefix before it, and its tokens. The other way round: by the former, in order.
        self._known: OrderedDict[bytes, tuple[bytes, bytes]] = OrderedDict()
        self._tokens: dict[bytes, list[tuple[bytes, bytes]]] = {}

    def add(self, node: Node) -> None:
        """A prefix went."""
        if not self._remembered or node.parent is None:
            return
        self.drop(node.key)
        tokens = _packed(node.tokens)
        self._known[node.key] = node.parent.key, tokens
        insort(self._tokens.setdefault(node.parent.key, []), (tokens, node.key))
        if len(self._known) > self._remembered:
            self.drop(next(iter(self._known)))

    def drop(self, key: bytes) -> None:
        """A prefix is there again, or forgotten."""
        known = self._known.pop(key, None)
        if known is not None:
            parent, tokens = known
            of_parent = self._tokens[parent]
            del of_parent[bisect_left(of_parent, (tokens, key))]
            if not of_parent:
                del self._tokens[parent]

    def had(self, parent: Node, tokens: Sequence[int]) -> bool:
        """Whether a prefix went that begins with ``tokens`` after ``parent``."""
        known, wanted = self._tokens.get(parent.key, ()), _packed(tokens)
        at = bisect_left(known, (wanted, b""))  # what begins with it comes next in the order of bytes
        return at < len(known) and known[at][0].startswith(wanted)


def _packed(tokens: Sequence[int]) -> bytes:
    return array("i", tokens).tobytes()
