"""Block tables over all cache groups: what a request may reuse, what it can ever need, what it holds. Imports no torch.

A request is admitted against everything it can ever need, so an admitted one always gets its next block:
a group without a window keeps ``used + promised <= total`` (a shared block is charged once), and a group with a window
keeps the sum of its requests' caps below its total (a request may leave a shared block behind, so sharing earns nothing).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import lcm
from typing import NamedTuple

from bestiary.core.errors import EngineError
from bestiary.core.runtime.blocks import BlockPool, Node
from bestiary.core.runtime.cache_groups import CacheGroup
from bestiary.core.runtime.request import Request


class Hit(NamedTuple):
    """The longest prefix that every group still has: its length in tokens and each group's nodes."""

    length: int
    chains: list[list[Node]]


class BlockTables:
    """The pools of an engine and what each request holds of them.

    Args:
        max_num_tokens: most tokens of one request in a step; a window's blocks are freed between steps only.
        prefix_caching: keep and look up prefixes.
        key: secret of the hash chains; random unless given.
    """

    def __init__(
        self,
        groups: Sequence[CacheGroup],
        *,
        max_num_tokens: int,
        prefix_caching: bool = True,
        key: bytes | None = None,
    ) -> None:
        self.groups = tuple(groups)
        self.pools = tuple(BlockPool(group.num_blocks, group.block_size, key=key) for group in self.groups)
        self.prefix_caching = prefix_caching
        self.version = 0  # changes whenever a request that didn't fit might fit
        self._max_num_tokens = max_num_tokens
        self._stride = lcm(*(group.block_size for group in self.groups))
        self._promised = [0] * len(self.groups)

    def caps(self, request: Request) -> tuple[int, ...]:
        """Per group the most blocks the request can hold at once. Its last token is sampled but never runs."""
        stored = request.max_length - 1
        return tuple(self._cap(group, stored) for group in self.groups)

    def _cap(self, group: CacheGroup, stored: int) -> int:
        size = group.block_size
        whole = -(-stored // size)
        if group.window is None:
            return whole
        # The window before the last block border, and a longest chunk that starts just before the next one.
        chunk = min(self._max_num_tokens, stored)
        return min(whole, -(-(size - 1 + chunk) // size) - (-(group.window - 1) // size))

    def match(self, request: Request) -> Hit:
        """The longest reusable prefix of the prompt; at least one prompt token is left to compute."""
        most = (request.prompt_length - 1) // self._stride * self._stride
        if not (self.prefix_caching and request.reusable and most):
            return Hit(0, [[] for _ in self.groups])
        chains, runs = [], []
        for group, pool in zip(self.groups, self.pools, strict=True):
            chain, run = self._walk(group, pool, request.tokens, most)
            chains.append(chain)
            runs.append(run)
        for length in range(most, 0, -self._stride):
            if all(self._covers(g, r, length) for g, r in zip(self.groups, runs, strict=True)):
                return Hit(length, [c[: length // g.block_size] for c, g in zip(chains, self.groups, strict=True)])
        return Hit(0, [[] for _ in self.groups])

    @staticmethod
    def _walk(group: CacheGroup, pool: BlockPool, tokens: list[int], most: int) -> tuple[list[Node], list[int]]:
        """The prompt's nodes, and for each how many blocks in a row, itself the last, are in the cache."""
        chain: list[Node] = []
        run: list[int] = []
        size, parent, length = group.block_size, None, 0
        for start in range(0, most, size):
            parent = pool.find(parent, tokens[start : start + size])
            length = length + 1 if parent.block >= 0 else 0
            if length == 0 and group.window is None:
                break
            chain.append(parent)
            run.append(length)
        return chain, run

    @staticmethod
    def _covers(group: CacheGroup, run: list[int], length: int) -> bool:
        blocks = length // group.block_size
        return blocks <= len(run) and run[blocks - 1] >= blocks - group.first_needed(length)

    def fits(self, request: Request, hit: Hit) -> bool:
        """Whether everything the request can ever need is free beyond what the admitted ones still have promised."""
        for g, (group, pool) in enumerate(zip(self.groups, self.pools, strict=True)):
            if group.window is not None:
                if self._promised[g] + request.cap[g] > group.num_blocks:
                    return False
            else:
                held_by_others = sum(pool.refs[node.block] > 0 for node in hit.chains[g])
                if request.cap[g] - held_by_others > pool.available - self._promised[g]:
                    return False
        return True

    def admit(self, request: Request, hit: Hit) -> None:
        """Give the request its reused prefix and promise it the rest. ``fits`` must hold."""
        request.num_computed = request.num_cached = hit.length
        request.chain = hit.chains
        request.blocks = []
        for g, (group, pool) in enumerate(zip(self.groups, self.pools, strict=True)):
            first = group.first_needed(hit.length)
            table = [-1] * first + [node.block for node in hit.chains[g][first:]]
            for block in table[first:]:
                pool.share(block)
            request.blocks.append(table)
            self._promised[g] += request.cap[g] - (len(table) if group.window is None else 0)
        request.room = hit.length
        self._set_boundary(request)

    def extend(self, request: Request, end: int) -> None:
        """Blocks for the tokens before ``end``."""
        for g, (group, pool) in enumerate(zip(self.groups, self.pools, strict=True)):
            table = request.blocks[g]
            while len(table) * group.block_size < end:
                table.append(pool.take())
                if group.window is None:
                    self._promised[g] -= 1
        request.room = min(len(t) * g.block_size for t, g in zip(request.blocks, self.groups, strict=True))

    def computed(self, request: Request, end: int) -> None:
        """The tokens before ``end`` are stored: full blocks may be reused, and blocks before the window are let go."""
        request.num_computed = end
        if end < request.next_boundary:
            return
        self.version += 1
        for g, (group, pool) in enumerate(zip(self.groups, self.pools, strict=True)):
            table = request.blocks[g]
            if self.prefix_caching and request.reusable:
                self._register(request, g, end)
            for index in range(group.first_needed(end) - 1, -1, -1):
                if table[index] < 0:
                    break
                pool.release(table[index])
                table[index] = -1
        self._set_boundary(request)

    def _register(self, request: Request, g: int, end: int) -> None:
        chain, size, pool = request.chain[g], self.groups[g].block_size, self.pools[g]
        while (len(chain) + 1) * size <= end:
            start = len(chain) * size
            node = pool.find(chain[-1] if chain else None, request.tokens[start : start + size])
            if node.block < 0:
                pool.register(node, request.blocks[g][len(chain)])
            chain.append(node)

    def _set_boundary(self, request: Request) -> None:
        request.next_boundary = min((request.num_computed // g.block_size + 1) * g.block_size for g in self.groups)

    def release(self, request: Request) -> None:
        """Take back all blocks, the last first, so that the ends of prefixes are evicted before their beginnings."""
        for g, (group, pool) in enumerate(zip(self.groups, self.pools, strict=True)):
            table = request.blocks[g]
            for block in reversed(table):
                if block >= 0:
                    pool.release(block)
            self._promised[g] -= request.cap[g] - (len(table) if group.window is None else 0)
        request.blocks, request.chain = [], []
        self.version += 1

    def reset(self, running: Iterable[Request]) -> None:
        """Forget every prefix; what the running requests have computed is not offered either."""
        for request in running:
            request.reusable = False
        for pool in self.pools:
            pool.reset()
        self.version += 1

    def check(self, running: Sequence[Request]) -> None:
        """Raise EngineError unless blocks, reference counts, promises and write rights add up."""
        for g, (group, pool) in enumerate(zip(self.groups, self.pools, strict=True)):
            pool.check([request.blocks[g] for request in running])
            held = sum(len(request.blocks[g]) for request in running) if group.window is None else 0
            if self._promised[g] != sum(request.cap[g] for request in running) - held:
                raise EngineError(
                    "E-RUN-ACCOUNT", f"cache group {g}", "promises differ from what the requests may need"
                )
            if self._promised[g] > (pool.available if group.window is None else group.num_blocks):
                raise EngineError("E-RUN-ACCOUNT", f"cache group {g}", "more blocks are promised than are left")
            for request in running:
                if sum(block >= 0 for block in request.blocks[g]) > request.cap[g]:
                    raise EngineError("E-RUN-ACCOUNT", request.id, "holds more blocks than it was admitted for")
                for block in request.blocks[g][request.num_computed // group.block_size :]:
                    if pool.refs[block] != 1 or pool.is_registered(block):
                        raise EngineError("E-RUN-ACCOUNT", request.id, f"may write to block {block}, which others read")
