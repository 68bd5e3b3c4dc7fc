"""The tree of known prefixes of one cache group: which blocks hold which tokens after which. Imports no torch.

A prefix is found by a keyed hash chain over its scope (salt and adapter) and the tokens of its blocks, and a find counts
only when the tokens of the whole chain are equal, so a hash collision is never served.
"""

from __future__ import annotations

import secrets
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import islice
from typing import NamedTuple

from bestiary.core.runtime.evictions import Evictions

LOOKED_AT = 256  # most continuations of a prefix that are compared with a prompt, the newest first
_SCOPES = 4  # most scopes that are searched for a prompt


class Scope(NamedTuple):
    """Requests of different scopes never share a block."""

    salt: str | None = None
    adapter: str | None = None


class Node:
    """A block's place in the tree of prefixes; ``block`` is -1 while no block holds it.

    A node with fewer tokens than a block has is the end of a request that was over: nothing follows it, and it is reused
    by copy only.

    Attributes:
        scope: of the requests that may have the block.
        born: number of the step that writes the block.
        priority: 0 … 100; blocks of a low one are evicted first.
        expires: on the pool's clock; None for never.
    """

    __slots__ = ("block", "born", "children", "expires", "key", "parent", "priority", "scope", "tokens")

    def __init__(self, key: bytes, tokens: tuple[int, ...], parent: Node | None, scope: Scope) -> None:
        self.key, self.tokens, self.parent, self.scope = key, tokens, parent, scope
        self.block = -1
        self.born = 0
        self.priority = 0
        self.expires: float | None = None
        self.children: dict[bytes, Node] = {}  # those that a block holds

    def follows(self, parent: Node, tokens: tuple[int, ...]) -> bool:
        """Whether this is the block of ``tokens`` after exactly the prefix that ``parent`` ends, in its scope."""
        if self.tokens != tokens or self.scope != parent.scope:
            return False
        mine: Node | None = self.parent
        other: Node | None = parent
        while mine is not other:
            if mine is None or other is None or mine.tokens != other.tokens:
                return False
            mine, other = mine.parent, other.parent
        if self.parent is not parent:
            # An equal prefix that was evicted and computed anew is another object; adopting it makes the next check short.
            if self.parent is not None:
                self.parent.children.pop(self.key, None)
            self.parent = parent
            if self.block >= 0:
                parent.children[self.key] = self
        return True


class PrefixTree:
    """Finds, adds and removes nodes.

    Args:
        key: secret of the hash chain, up to 64 bytes; random unless given, so that nobody outside can aim a collision.
        remembered: how many evicted prefixes are remembered, to tell "evicted" from "never seen".
    """

    def __init__(self, *, key: bytes | None = None, remembered: int = 0) -> None:
        self._secret = secrets.token_bytes(32) if key is None else key
        self.index: dict[bytes, Node] = {}
        self._roots: dict[Scope, Node] = {}
        # First tokens → the first blocks that begin with them → how often each scope has them.
        self._firsts: dict[int, dict[tuple[int, ...], Counter[Scope]]] = {}
        self.evictions = Evictions(remembered)

    def root(self, scope: Scope) -> Node:
        """The empty prefix of a scope, which no block holds."""
        known = self._roots.get(scope)
        if known is None:
            text = "\x00".join(f"{len(part)}:{part}" if part is not None else "" for part in scope)
            digest = blake2b(text.encode(), key=self._secret, digest_size=16).digest()
            known = self._roots[scope] = Node(digest, (), None, scope)
            if len(self._roots) > 4096:  # salts come from outside: forget those that nothing hangs on
                self._roots = {s: node for s, node in self._roots.items() if node.children or s == scope}
        return known

    def find(self, parent: Node, tokens: Sequence[int]) -> Node:
        """The node of ``tokens`` after ``parent``: the indexed one, else a new one without a block."""
        content = tuple(tokens)
        key = self.key(parent, content)
        known = self.index.get(key)
        return (
            known if known is not None and known.follows(parent, content) else Node(key, content, parent, parent.scope)
        )

    def add(self, node: Node) -> bool:
        """Index a node whose block is set; False if its place is taken, by itself or by a colliding prefix."""
        if node.key in self.index:
            return False
        self.index[node.key] = node
        assert node.parent is not None
        node.parent.children[node.key] = node
        if not node.parent.tokens:
            self._firsts.setdefault(node.tokens[0], {}).setdefault(node.tokens, Counter())[node.scope] += 1
        self.evictions.drop(node.key)
        return True

    def remove(self, node: Node) -> None:
        """Forget a node; what follows it stays indexed, out of reach until the node comes back."""
        del self.index[node.key]
        parent = node.parent
        if parent is not None:
            parent.children.pop(node.key, None)
            if not parent.tokens:
                self._drop_first(node)
        self.evictions.add(node)

    def clear(self) -> None:
        """Forget all nodes."""
        for node in self.index.values():
            node.children.clear()
        for node in self._roots.values():
            node.children.clear()
        for node in self.index.values():
            self.evictions.add(node)
        self.index.clear()
        self._firsts.clear()

    def elsewhere(self, node: Node, chain: Sequence[Node], tokens: Sequence[int]) -> Scope | None:
        """Another scope that has a prefix which begins with the ``tokens`` after those of ``chain``, which ``node`` ends."""
        more = tuple(tokens)
        found = islice(self._others(node.scope, chain[0].tokens if chain else more), _SCOPES)
        return next((scope for scope in found if not chain or self._continues(scope, chain, more)), None)

    def _others(self, scope: Scope, first: tuple[int, ...]) -> Iterator[Scope]:
        """The other scopes with a first block that begins with ``first``."""
        if len(self._roots) > 1:
            for tokens, scopes in islice(reversed(self._firsts.get(first[0], {}).items()), LOOKED_AT):
                if tokens[: len(first)] == first:
                    yield from (other for other in scopes if other != scope)

    def _continues(self, scope: Scope, chain: Sequence[Node], more: tuple[int, ...]) -> bool:
        node: Node | None = self.root(scope)
        for known in chain:
            assert node is not None
            node = self.index.get(self.key(node, known.tokens))
            if node is None:
                return False
        assert node is not None
        return any(one.tokens[: len(more)] == more for one in islice(reversed(node.children.values()), LOOKED_AT))

    def key(self, parent: Node, tokens: tuple[int, ...]) -> bytes:
        chain = blake2b(parent.key, key=self._secret, digest_size=16)
        chain.update(array("q", tokens).tobytes())
        return chain.digest()

    def _drop_first(self, node: Node) -> None:
        blocks = self._firsts[node.tokens[0]]
        scopes = blocks[node.tokens]
        scopes[node.scope] -= 1
        if scopes[node.scope] <= 0:
            del scopes[node.scope]
        if not scopes:
            del blocks[node.tokens]
        if not blocks:
            del self._firsts[node.tokens[0]]
