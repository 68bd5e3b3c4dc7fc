"""The blocks of one cache group: who holds which, and which hold a known prefix. Imports no torch.

A block is *free* (holds nothing), *idle* (nobody holds it, but its content is a known prefix) or *used* (one or more
block tables hold it). Prefixes are found by a keyed hash chain over the tokens of full blocks, and a find counts only
when the tokens of the whole chain are equal, so a hash collision is never served.
"""

from __future__ import annotations

import secrets
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

from bestiary.core.errors import EngineError


class Node:
    """A full block's place in the tree of prefixes; ``block`` is -1 while no block holds it."""

    __slots__ = ("block", "key", "parent", "tokens")

    def __init__(self, key: bytes, tokens: tuple[int, ...], parent: Node | None) -> None:
        self.key, self.tokens, self.parent = key, tokens, parent
        self.block = -1

    def follows(self, parent: Node | None, tokens: tuple[int, ...]) -> bool:
        """Whether this is the block of ``tokens`` after exactly the prefix that ``parent`` ends."""
        if self.tokens != tokens:
            return False
        mine, other = self.parent, parent
        while mine is not other:
            if mine is None or other is None or mine.tokens != other.tokens:
                return False
            mine, other = mine.parent, other.parent
        # An equal prefix that was evicted and computed anew is another object; adopting it makes the next check short.
        self.parent = parent
        return True


class BlockPool:
    """Reference counts and the prefix index of one group's blocks.

    Args:
        key: secret of the hash chain, up to 64 bytes; random unless given, so that nobody outside can aim a collision.
    """

    def __init__(self, num_blocks: int, block_size: int, *, key: bytes | None = None) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
        self.refs = [0] * num_blocks
        self._secret = secrets.token_bytes(32) if key is None else key
        self._free = list(range(num_blocks - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # the least recently used first
        self._nodes: list[Node | None] = [None] * num_blocks
        self._index: dict[bytes, Node] = {}

    @property
    def num_free(self) -> int:
        """Blocks that hold nothing."""
        return len(self._free)

    @property
    def num_idle(self) -> int:
        """Blocks that nobody holds but whose prefix can still be reused."""
        return len(self._idle)

    @property
    def num_used(self) -> int:
        """Blocks in some block table."""
        return self.num_blocks - len(self._free) - len(self._idle)

    @property
    def available(self) -> int:
        """Blocks that :meth:`take` can give."""
        return len(self._free) + len(self._idle)

    def take(self) -> int:
        """A block for writing, held once; the least recently used idle one when none is free."""
        if self._free:
            block = self._free.pop()
        elif self._idle:
            block = self._idle.popitem(last=False)[0]
            self._forget(block)
        else:
            raise EngineError("E-RUN-BLOCKS", "block pool", "no block is left though one was promised")
        self.refs[block] = 1
        return block

    def share(self, block: int) -> None:
        """Hold a block that has a known prefix once more."""
        if self.refs[block] == 0:
            del self._idle[block]
        self.refs[block] += 1

    def release(self, block: int) -> None:
        """Hold a block once less; the last one leaves it idle if its prefix is known, else free."""
        self.refs[block] -= 1
        if self.refs[block] == 0:
            if self._nodes[block] is None:
                self._free.append(block)
            else:
                self._idle[block] = None

    def find(self, parent: Node | None, tokens: Sequence[int]) -> Node:
        """The node of a full block of ``tokens`` after ``parent``: the indexed one, else a new one without a block."""
        content = tuple(tokens)
        key = self._key(parent, content)
        known = self._index.get(key)
        return known if known is not None and known.follows(parent, content) else Node(key, content, parent)

    def register(self, node: Node, block: int) -> None:
        """``block`` now holds ``node``'s keys and values. The first block of a prefix stays the indexed one."""
        if node.key not in self._index and self._nodes[block] is None:
            node.block = block
            self._nodes[block] = node
            self._index[node.key] = node

    def reset(self) -> None:
        """Forget every prefix; idle blocks become free."""
        for node in self._index.values():
            self._nodes[node.block] = None
            node.block = -1
        self._index.clear()
        self._free.extend(self._idle)
        self._idle.clear()

    def is_registered(self, block: int) -> bool:
        """Whether the block's content may be shared, so that nobody may write to it."""
        return self._nodes[block] is not None

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """Raise EngineError unless every block is accounted for, given all block tables of the group."""
        held = Counter(block for table in tables for block in table if block >= 0)
        unheld = sorted(self._free + list(self._idle))
        problems = [
            (
                any(self.refs[block] != held[block] for block in range(self.num_blocks)),
                "reference counts differ from tables",
            ),
            (unheld != [b for b in range(self.num_blocks) if self.refs[b] == 0], "free + idle + used is not the total"),
            (any(self._nodes[block] is not None for block in self._free), "a free block has a prefix"),
            (any(self._nodes[block] is None for block in self._idle), "an idle block has no prefix"),
            (any(self._nodes[node.block] is not node for node in self._index.values()), "the index is stale"),
            (len(self._index) != sum(node is not None for node in self._nodes), "a prefix is not in the index"),
        ]
        for wrong, problem in problems:
            if wrong:
                raise EngineError("E-RUN-ACCOUNT", "block pool", problem)

    def _forget(self, block: int) -> None:
        node = self._nodes[block]
        if node is not None:
            del self._index[node.key]
            self._nodes[block] = None
            node.block = -1

    def _key(self, parent: Node | None, tokens: tuple[int, ...]) -> bytes:
        chain = blake2b(b"" if parent is None else parent.key, key=self._secret, digest_size=16)
        chain.update(array("q", tokens).tobytes())
        return chain.digest()
