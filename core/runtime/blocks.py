"""The blocks of one cache group: who holds which, and which hold a known prefix. Imports no torch.

A block is *free* (holds nothing), *cached* (nobody holds it, but its content is a known prefix) or *used* (one or more
block tables hold it). When no block is free, the cached block of the lowest priority that was let go first is taken.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from bestiary.core.errors import EngineError
from bestiary.core.runtime.prefixes import Node, PrefixTree

_EVENTS = 65536  # kept until someone reads them; the oldest go first


@dataclass(frozen=True, slots=True)
class CacheEvent:
    """A block's prefix became known (``stored``) or was forgotten (``removed``); ``cleared`` says that all were.

    Args:
        key: the prefix's hash, hex; equal within one engine for equal prefixes of one scope.
        parent: the hash of the prefix before it.
        tokens: how many tokens the block adds.
    """

    kind: Literal["stored", "removed", "cleared"]
    key: str = ""
    parent: str = ""
    tokens: int = 0


class BlockPool:
    """Reference counts, eviction and the prefixes of one group's blocks.

    Args:
        key: secret of the hash chain; random unless given.
        clock: seconds, for blocks with a time to live.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        key: bytes | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
        self.refs = [0] * num_blocks
        self.tree = PrefixTree(key=key, remembered=4 * num_blocks)
        self.events: deque[CacheEvent] | None = None  # a deque once someone wants them
        self._clock = clock
        self._free = list(range(num_blocks - 1, -1, -1))
        self._cached: dict[int, OrderedDict[int, None]] = {}  # by priority, the least recently used first
        self._num_cached = 0
        self._nodes: list[Node | None] = [None] * num_blocks
        # A heap: when, at the earliest, a block's prefix ends. One for each, and some of prefixes that are gone.
        self._expiring: list[tuple[float, int, bytes]] = []

    @property
    def num_free(self) -> int:
        """Blocks that hold nothing."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Blocks that nobody holds but whose prefix can still be reused."""
        return self._num_cached

    @property
    def num_used(self) -> int:
        """Blocks in some block table."""
        return self.num_blocks - len(self._free) - self._num_cached

    @property
    def available(self) -> int:
        """Blocks that :meth:`take` can give."""
        return len(self._free) + self._num_cached

    def take(self) -> int:
        """A block for new content, held once.

        Raises:
            EngineError: there is none; callers make sure that there is.
        """
        self.expire()
        if self._free:
            block = self._free.pop()
        elif self._num_cached:
            lowest = min(priority for priority, blocks in self._cached.items() if blocks)
            block, _ = self._cached[lowest].popitem(last=False)
            self._num_cached -= 1
            self.forget(block)
        else:
            raise EngineError("E-RUN-BLOCKS", "block pool", "no block is left though one was promised")
        self.refs[block] = 1
        return block

    def share(self, block: int) -> None:
        """Hold a block that has content once more."""
        if self.refs[block] == 0:
            node = self._nodes[block]
            assert node is not None
            del self._cached[node.priority][block]
            self._num_cached -= 1
        self.refs[block] += 1

    def release(self, block: int) -> None:
        """Hold a block once less; the last one leaves it cached if its prefix is known, else free."""
        self.refs[block] -= 1
        if self.refs[block] == 0:
            node = self._nodes[block]
            if node is None:
                self._free.append(block)
            else:
                self._cached.setdefault(node.priority, OrderedDict())[block] = None
                self._num_cached += 1

    def register(self, node: Node, block: int, *, step: int, priority: int, ttl: float | None) -> None:
        """``block`` (-1: none) holds ``node``'s keys and values from ``step`` on. The first block of a prefix stays the
        indexed one."""
        if node.block >= 0:
            self.reuse(node, priority, ttl)
            return
        if block < 0 or self._nodes[block] is not None:
            return
        node.block, node.born, node.priority = block, step, priority
        if not self.tree.add(node):
            node.block = -1
            return
        self._nodes[block] = node
        if ttl is not None:
            node.expires = self._clock() + ttl
            self._ends(node.expires, block, node.key)
        if self.events is not None:
            assert node.parent is not None
            self._tell(CacheEvent("stored", node.key.hex(), node.parent.key.hex(), len(node.tokens)))

    def node_of(self, block: int) -> Node | None:
        """The prefix that the block is known by."""
        return self._nodes[block]

    def reuse(self, node: Node, priority: int, ttl: float | None) -> None:
        """Someone else uses the prefix: it has the highest priority and the longest life that anyone wishes for it."""
        if node.block < 0:
            return
        if priority > node.priority:
            if self.refs[node.block] == 0:
                del self._cached[node.priority][node.block]
                self._cached.setdefault(priority, OrderedDict())[node.block] = None
            node.priority = priority
        if node.expires is None:
            return
        until = None if ttl is None else self._clock() + ttl
        if until is None or until > node.expires:
            node.expires = until  # the heap's entry is looked at no later than it says, and is put off then

    def forget(self, block: int) -> None:
        """The block's prefix is no longer offered; who holds the block keeps it."""
        node = self._nodes[block]
        if node is None:
            return
        if self.refs[block] == 0 and block in self._cached.get(node.priority, ()):
            del self._cached[node.priority][block]
            self._num_cached -= 1
            self._free.append(block)
        self.tree.remove(node)
        self._nodes[block] = None
        node.block = -1
        if self.events is not None:
            self._tell(CacheEvent("removed", node.key.hex(), "", len(node.tokens)))

    def forget_since(self, step: int) -> list[int]:
        """Forget the prefixes written in ``step`` or later; those of their blocks that nobody holds."""
        written = [b for b, node in enumerate(self._nodes) if node is not None and node.born >= step]
        for block in written:
            self.forget(block)
        return [block for block in written if not self.refs[block]]

    def forget_branch(self, node: Node) -> list[int]:
        """Forget a prefix and all that go on from it; those of their blocks that nobody holds."""
        found, left = list[int](), [node]
        while left:
            one = left.pop()
            left += self.tree.after(one)
            if one.block >= 0:
                found.append(one.block)
                self.forget(one.block)
        return [block for block in found if not self.refs[block]]

    def expire(self) -> None:
        """Forget the prefixes whose time is over."""
        now = self._clock() if self._expiring else 0.0
        while self._expiring and self._expiring[0][0] <= now:
            _, block, key = heapq.heappop(self._expiring)
            node = self._nodes[block]
            if node is None or node.key != key or node.expires is None:
                continue
            if node.expires > now:
                self._ends(node.expires, block, key)
            else:
                self.forget(block)

    def _ends(self, when: float, block: int, key: bytes) -> None:
        """Look at the block's prefix then. What is of prefixes that are gone is swept out when it is as much as the rest."""
        heapq.heappush(self._expiring, (when, block, key))
        if len(self._expiring) > 2 * self.num_blocks:
            ends = [(n.expires, n.block, n.key) for n in self.tree.index.values() if n.expires is not None]
            self._expiring = ends
            heapq.heapify(self._expiring)

    def reset(self) -> None:
        """Forget every prefix; cached blocks become free."""
        for node in self.tree.index.values():
            self._nodes[node.block] = None
            node.block = -1
        self.tree.clear()
        for blocks in self._cached.values():
            self._free.extend(blocks)
            blocks.clear()
        self._num_cached = 0
        self._expiring.clear()
        if self.events is not None:
            self._tell(CacheEvent("cleared"))

    def watch(self) -> None:
        """Keep events from now on."""
        if self.events is None:
            self.events = deque(maxlen=_EVENTS)

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """Raise EngineError unless every block is accounted for, given all block tables of the group."""
        held = Counter(block for table in tables for block in table if block >= 0)
        cached = [block for blocks in self._cached.values() for block in blocks]
        unheld = sorted(self._free + cached)
        index = self.tree.index
        problems = [
            (
                any(self.refs[block] != held[block] for block in range(self.num_blocks)),
                "reference counts differ from tables",
            ),
            (
                unheld != [b for b in range(self.num_blocks) if self.refs[b] == 0],
                "free + cached + used is not the total",
            ),
            (self._num_cached != len(cached), "the count of cached blocks is wrong"),
            (any(self._nodes[block] is not None for block in self._free), "a free block has a prefix"),
            (any(self._nodes[block] is None for block in cached), "a cached block has no prefix"),
            (any(self._nodes[node.block] is not node for node in index.values()), "the index is stale"),
            (len(index) != sum(node is not None for node in self._nodes), "a prefix is not in the index"),
        ]
        for wrong, problem in problems:
            if wrong:
                raise EngineError("E-RUN-ACCOUNT", "block pool", problem)

    def _tell(self, event: CacheEvent) -> None:
        assert self.events is not None
        self.events.append(event)
