"""What goes on from one prefix, in the order of its tokens, so that what is most like a prompt is found at once. No torch."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bestiary.core.runtime.prefixes import Node


class Continuations:
    """Nodes, ordered by tokens and hash. To find, add or remove one takes the logarithm of their number in comparisons."""

    __slots__ = ("_nodes", "_order")

    def __init__(self) -> None:
        self._order: list[tuple[tuple[int, ...], bytes]] = []
        self._nodes: list[Node] = []

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)

    def add(self, node: Node) -> None:
        """One more."""
        place = node.tokens, node.key
        at = bisect_left(self._order, place)
        self._order.insert(at, place)
        self._nodes.insert(at, node)

    def remove(self, node: Node) -> None:
        """One less; the node must be there."""
        at = bisect_left(self._order, (node.tokens, node.key))
        while self._nodes[at] is not node:  # equal hashes of other scopes
            at += 1
        del self._order[at], self._nodes[at]

    def alike(self, wanted: Sequence[int]) -> Iterator[tuple[int, Node]]:
        """Those whose tokens begin as ``wanted`` does, and in how many tokens; the most alike first."""
        after = bisect_left(self._order, (tuple(wanted), b""))
        before = after - 1
        # In the order of tokens, those most alike stand next to where ``wanted`` would, on either side.
        left, right = self._common(before, wanted), self._common(after, wanted)
        while left or right:
            if right >= left:
                yield right, self._nodes[after]
                after += 1
                right = self._common(after, wanted)
            else:
                yield left, self._nodes[before]
                before -= 1
                left = self._common(before, wanted)

    def _common(self, at: int, wanted: Sequence[int]) -> int:
        """In how many leading tokens the node at a place is like ``wanted``; 0 where there is none."""
        if not 0 <= at < len(self._order):
            return 0
        tokens = self._order[at][0]
        for index, (a, b) in enumerate(zip(tokens, wanted, strict=False)):
            if a != b:
                return index
        return min(len(tokens), len(wanted))
