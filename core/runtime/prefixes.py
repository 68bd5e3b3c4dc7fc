"""The tree of known prefixes of one cache group: which blocks hold which tokens after which. Imports no torch.

A prefix is found by a keyed hash chain over its scope (salt and adapter) and the tokens of its blocks, and a find counts
only when the tokens of the whole chain are equal, so a hash collision is never served.
"""

from __future__ import annotations

import secrets
from array import array
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Final, NamedTuple, TypeVar

from bestiary.core.runtime.continuations import Continuations
from bestiary.core.runtime.evictions import Evictions

_NOTHING: Final = Continuations()
_Key = TypeVar("_Key", bytes, tuple[bytes, str | None])


class Scope(NamedTuple):
    """Requests of different scopes never share a block."""

    salt: str | None = None
    adapter: str | None = None


class Node:
    """A block's place in the tree of prefixes; ``block`` is -1 while no block holds it.

    A node with fewer tokens than a block has is the end of a request that was over: nothing follows it, and it is reused
    by copy only.

    Attributes:
        key: hash of the scope and all tokens up to its end.
        content: hash of the tokens alone.
        scope: of the requests that may have the block.
        born: number of the step that writes the block.
        priority: 0 … 100; blocks of a low one are evicted first.
        expires: on the pool's clock; None for never.
    """

    __slots__ = ("block", "born", "content", "expires", "key", "parent", "priority", "scope", "tokens")

    def __init__(self, key: bytes, content: bytes, tokens: tuple[int, ...], parent: Node | None, scope: Scope) -> None:
        self.key, self.content, self.tokens, self.parent, self.scope = key, content, tokens, parent, scope
        self.block = -1
        self.born = 0
        self.priority = 0
        self.expires: float | None = None

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
        # An equal prefix that was evicted and computed anew is another object; adopting it makes the next check short.
        self.parent = parent
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
        self._after: dict[bytes, Continuations] = {}  # indexed nodes by the key of the prefix before them
        self._anywhere: dict[bytes, Continuations] = {}  # those of all scopes, by its content
        self._of_salt: dict[tuple[bytes, str | None], Continuations] = {}  # those of all adapters, by that and the salt
        self.evictions = Evictions(remembered)

    def root(self, scope: Scope) -> Node:
        """The empty prefix of a scope, which no block holds."""
        known = self._roots.get(scope)
        if known is None:
            text = "\x00".join(f"{len(part)}:{part}" if part is not None else "" for part in scope)
            digest = blake2b(text.encode(), key=self._secret, digest_size=16).digest()
            known = self._roots[scope] = Node(digest, b"", (), None, scope)
            if len(self._roots) > 4096:  # salts come from outside: forget those that nothing hangs on
                self._roots = {s: node for s, node in self._roots.items() if node.key in self._after or s == scope}
        return known

    def find(self, parent: Node, tokens: Sequence[int]) -> Node:
        """The node of ``tokens`` after ``parent``: the indexed one, else a new one without a block."""
        content = tuple(tokens)
        key = self.key(parent, content)
        known = self.index.get(key)
        if known is not None and known.follows(parent, content):
            return known
        return Node(key, self._content(parent, content), content, parent, parent.scope)

    def add(self, node: Node) -> bool:
        """Index a node whose block is set; False if its place is taken, by itself or by a colliding prefix."""
        if node.key in self.index:
            return False
        self.index[node.key] = node
        assert node.parent is not None
        self._after.setdefault(node.parent.key, Continuations()).add(node)
        self._anywhere.setdefault(node.parent.content, Continuations()).add(node)
        self._of_salt.setdefault((node.parent.content, node.scope.salt), Continuations()).add(node)
        self.evictions.drop(node.key)
        return True

    def remove(self, node: Node) -> None:
        """Forget a node; what follows it stays indexed, out of reach until the node comes back."""
        del self.index[node.key]
        assert node.parent is not None
        _drop(self._after, node.parent.key, node)
        _drop(self._anywhere, node.parent.content, node)
        _drop(self._of_salt, (node.parent.content, node.scope.salt), node)
        self.evictions.add(node)

    def clear(self) -> None:
        """Forget all nodes."""
        for node in self.index.values():
            self.evictions.add(node)
        self.index.clear()
        self._after.clear()
        self._anywhere.clear()
        self._of_salt.clear()

    def after(self, node: Node) -> Iterator[Node]:
        """The nodes that go on from a node's prefix."""
        return (one for one in list(self._after.get(node.key, ())) if one.follows(node, one.tokens))

    def alike(self, node: Node, tokens: Sequence[int]) -> Iterator[tuple[int, Node]]:
        """As :meth:`after`, those that begin as ``tokens`` do, and in how many; the most alike first."""
        known = self._after.get(node.key, _NOTHING).alike(tokens)
        return ((common, one) for common, one in known if one.follows(node, one.tokens))

    def elsewhere(self, node: Node, tokens: Sequence[int]) -> Scope | None:
        """Another scope of whose prefixes one goes on with ``tokens`` after the tokens of the prefix that ``node`` ends.

        Its salt may keep this from the request that asks: see :meth:`in_the_open`."""
        return _another(self._anywhere.get(node.content, _NOTHING), node, tokens)

    def in_the_open(self, node: Node, tokens: Sequence[int]) -> Scope | None:
        """As :meth:`elsewhere`, of scopes without a salt or with that of ``node``: whoever knows the latter may ask them, too."""
        for salt in dict.fromkeys((node.scope.salt, None)):
            found = _another(self._of_salt.get((node.content, salt), _NOTHING), node, tokens)
            if found is not None:
                return found
        return None

    def key(self, parent: Node, tokens: tuple[int, ...]) -> bytes:
        chain = blake2b(parent.key, key=self._secret, digest_size=16)
        chain.update(array("q", tokens).tobytes())
        return chain.digest()

    def _content(self, parent: Node, tokens: tuple[int, ...]) -> bytes:
        chain = blake2b(parent.content, key=self._secret, digest_size=16)
        chain.update(array("q", tokens).tobytes())
        return chain.digest()


def _another(known: Continuations, node: Node, tokens: Sequence[int]) -> Scope | None:
    for common, one in known.alike(tokens):
        if common < len(tokens):
            break
        if one.scope != node.scope:
            return one.scope
    return None


def _drop(known: dict[_Key, Continuations], prefix: _Key, node: Node) -> None:
    of_prefix = known[prefix]
    of_prefix.remove(node)
    if not of_prefix:
        del known[prefix]
