"""Block tables over all cache groups: what a request holds, may take, and gives back. Imports no torch.

With ``promise`` a request is admitted against everything it can ever need, so an admitted one always gets its next block:
a group without a window keeps ``used + promised <= total`` (a shared block is charged once), and a group with a window
keeps the sum of its requests' caps below its total (a request may leave a shared block behind, so sharing earns nothing).
Without it, a block may be missing, and the scheduler has someone give his up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from math import lcm

from bestiary.core.errors import EngineError
from bestiary.core.runtime import reuse
from bestiary.core.runtime.blocks import BlockPool
from bestiary.core.runtime.cache_groups import CacheGroup
from bestiary.core.runtime.changes import ChangeLog
from bestiary.core.runtime.messages import TableChanges
from bestiary.core.runtime.prefixes import Node
from bestiary.core.runtime.request import Request
from bestiary.core.runtime.reuse import Hit


class BlockTables:
    """The pools of an engine and what each request holds of them.

    Args:
        max_num_tokens: most tokens of one request in a step; a window's blocks are freed between steps only.
        prefix_caching: keep and look up prefixes.
        promise: admit only what can finish.
        key: secret of the hash chains; random unless given.
        clock: seconds, for cached blocks with a time to live.
    """

    def __init__(
        self,
        groups: Sequence[CacheGroup],
        *,
        max_num_tokens: int,
        prefix_caching: bool = True,
        promise: bool = True,
        key: bytes | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.groups = tuple(groups)
        self.pools = tuple(BlockPool(group.num_blocks, group.block_size, key=key, clock=clock) for group in self.groups)
        self.prefix_caching, self.promise = prefix_caching, promise
        self.versions = [0] * len(
            self.groups
        )  # each changes whenever a request that its group had no room for might fit
        self._max_num_tokens = max_num_tokens
        self._stride = lcm(*(group.block_size for group in self.groups))
        self._promised = [0] * len(self.groups)
        self._changes = tuple(ChangeLog() for _ in self.groups)

    def caps(self, request: Request) -> tuple[int, ...]:
        """Per group the most blocks the request can hold at once. Its last token is sampled but never runs."""
        stored = request.max_length - 1
        return tuple(self._cap(group, stored) for group in self.groups)

    def _cap(self, group: CacheGroup, stored: int) -> int:
        size = group.block_size
        whole = -(-stored // size)
        if group.window is None:
            return whole
        # A longest chunk and what its first token sees before it, where they cross the most borders of blocks.
        span = group.window - 1 + min(self._max_num_tokens, stored)
        return min(whole, -(-(span - 1) // size) + 1)

    def match(self, request: Request, step: int) -> Hit:
        """What the request can take over from earlier ones."""
        if not self.groups:
            return Hit(0, [], [])
        if not (self.prefix_caching and request.reusable and request.tapped is None):
            return reuse.nothing(self.groups, "disabled" if len(request.tokens) > 1 else None)
        return reuse.match(request, self.groups, self.pools, self._stride, step)

    def lacks(self, request: Request, hit: Hit, spare: int = 0) -> int | None:
        """The first group in which what the request needs is not free: all it can ever need where that is promised, else
        its tokens so far and ``spare`` blocks for those that run. None where it is in all."""
        for g, (group, pool) in enumerate(zip(self.groups, self.pools, strict=True)):
            held_by_others = sum(block >= 0 and pool.refs[block] > 0 for block in hit.blocks[g])
            if not self.promise:
                need = min(-(-len(request.tokens) // group.block_size), request.cap[g])
                if need - held_by_others + spare > pool.available:
                    return g
            elif group.window is not None:
                if self._promised[g] + request.cap[g] > group.num_blocks:
                    return g
            elif request.cap[g] - held_by_others > pool.available - self._promised[g]:
                return g
        return None

    def admit(self, request: Request, hit: Hit) -> None:
        """Give the request, whose slot is open, what it takes over, and promise it the rest. It must lack nothing."""
        request.chain = [list(chain) for chain in hit.chains]
        request.blocks = [[] for _ in self.groups]
        if self.promise:
            self._promised = [promised + cap for promised, cap in zip(self._promised, request.cap, strict=True)]
        for g, pool in enumerate(self.pools):
            for block in hit.blocks[g]:
                if block >= 0:
                    pool.share(block)
                self._hold(request, g, block)
            used = hit.chains[g] if not hit.sources else [*hit.chains[g], pool.node_of(hit.sources[g])]
            for node in used:
                if node is not None:
                    pool.reuse(node, request.params.cache_priority, request.params.cache_ttl)
        for g, source in enumerate(hit.sources):
            target = self._append(request, g)
            if target != source:
                self._changes[g].copy(source, target)

    def grow(self, request: Request, end: int) -> int:
        """Blocks for the tokens before ``end``, as far as there are any; the tokens that the request's blocks can take."""
        while (room := self.room(request)) < end:
            short = [g for g, group in enumerate(self.groups) if len(request.blocks[g]) * group.block_size == room]
            if not self.promise and any(not self.pools[g].available for g in short):
                break
            for g in short:
                self._append(request, g)
        return room

    def room(self, request: Request) -> int:
        """Tokens that the request's blocks can take."""
        return min(
            (len(t) * g.block_size for t, g in zip(request.blocks, self.groups, strict=True)),
            default=request.max_length,
        )

    def retract(self, request: Request) -> None:
        """Take back what :meth:`admit` gave before it failed, the places in the tables too."""
        for g, blocks in enumerate(request.blocks):
            self._changes[g].withdraw(request.slot, blocks)
        if request.blocks:
            self.release(request, 0, 0)

    def _append(self, request: Request, g: int) -> int:
        block = self.pools[g].take()
        self._hold(request, g, block)
        return block

    def _hold(self, request: Request, g: int, block: int) -> None:
        table = request.blocks[g]
        if block >= 0:
            self._changes[g].place(request.slot, len(table), block)
        table.append(block)
        if self.promise and self.groups[g].window is None:
            self._promised[g] -= 1

    def leave_behind(self, request: Request, start: int) -> None:
        """Let go of what no query at ``start`` or later reads."""
        for g, (group, pool, table) in enumerate(zip(self.groups, self.pools, request.blocks, strict=True)):
            for index in range(min(group.first_needed(start), len(table)) - 1, -1, -1):
                if table[index] < 0:
                    break
                pool.release(table[index])
                table[index] = -1
                if not self.promise:  # else what the group has promised counts, and that is as before
                    self.versions[g] += 1

    def stored(self, request: Request, end: int, step: int) -> int:
        """The steps up to ``step`` store the tokens before ``end``: full blocks may be reused. The tokens that fill the
        next block of some group."""
        if self.prefix_caching and request.reusable:
            for g in range(len(self.groups)):
                self._register(request, g, end, step)
        return min(((end // g.block_size + 1) * g.block_size for g in self.groups), default=1 << 30)

    def _register(self, request: Request, g: int, end: int, step: int) -> None:
        chain, size, pool, params = request.chain[g], self.groups[g].block_size, self.pools[g], request.params
        tokens = request.tokens
        while (len(chain) + 1) * size <= end:
            start = len(chain) * size
            parent = chain[-1] if chain else pool.tree.root(request.scope)
            node = pool.tree.find(parent, tokens[start : start + size].tolist())
            block = request.blocks[g][len(chain)]
            pool.register(node, block, step=step, priority=params.cache_priority, ttl=params.cache_ttl)
            chain.append(node)

    def release(self, request: Request, end: int, step: int) -> None:
        """Take back all blocks of a request whose first ``end`` tokens are stored, the last block first, so that the ends
        of prefixes are evicted before their beginnings."""
        if self.prefix_caching and request.reusable and end:
            self.stored(request, end, step)
            self._keep_tail(request, end, step)
        for g, (group, pool) in enumerate(zip(self.groups, self.pools, strict=True)):
            table = request.blocks[g]
            for block in reversed(table):
                if block >= 0:
                    pool.release(block)
            if self.promise:
                self._promised[g] -= request.cap[g] - (len(table) if group.window is None else 0)
        request.blocks, request.chain = [], []
        self._may_fit()

    def _keep_tail(self, request: Request, end: int, step: int) -> None:
        """Offer the tokens in the last, partly filled block for copying."""
        params = request.params
        for chain, table, group, pool in zip(request.chain, request.blocks, self.groups, self.pools, strict=True):
            start = end // group.block_size * group.block_size
            place = start // group.block_size
            if start == end or place >= len(table) or table[place] < 0 or pool.refs[table[place]] > 1:
                continue
            node = pool.tree.find(
                chain[-1] if chain else pool.tree.root(request.scope), request.tokens[start:end].tolist()
            )
            pool.register(node, table[place], step=step, priority=params.cache_priority, ttl=params.cache_ttl)

    def discard(self, request: Request) -> None:
        """Take back the blocks of a request whose contents can't be trusted, unless they are known prefixes: none is offered,
        and what only it holds is filled with zeros before anyone else gets it."""
        for g, pool in enumerate(self.pools):
            for block in request.blocks[g]:
                if block >= 0 and pool.refs[block] == 1 and pool.node_of(block) is None:
                    self._changes[g].scrub(block)
        self.release(request, 0, 0)

    def forget_since(self, step: int) -> None:
        """What was stored in ``step`` or later is offered no more, and filled with zeros."""
        for pool, log in zip(self.pools, self._changes, strict=True):
            log.scrub_all(pool.forget_since(step))
        self._may_fit()

    def forget_own(self, request: Request) -> None:
        """What a running request stored since it was admitted is offered no more, nor what goes on from there."""
        for g, (group, table) in enumerate(zip(self.groups, request.blocks, strict=True)):
            first = 0 if request.hit is None else request.hit.length // group.block_size
            for place in range(first, len(table)):
                node = self.pools[g].node_of(table[place]) if table[place] >= 0 else None
                if node is not None:
                    self.forget_branch(g, node)

    def forget_branch(self, g: int, node: Node) -> None:
        """A prefix of a group and all that go on from it are offered no more, and filled with zeros unless someone holds them."""
        self._changes[g].scrub_all(self.pools[g].forget_branch(node))
        self._may_fit()

    def reset(self, running: Iterable[Request]) -> None:
        """Forget every prefix; what the running requests have computed is not offered either."""
        for request in running:
            request.reusable = False
        for pool in self.pools:
            pool.reset()
        self._may_fit()

    def _may_fit(self) -> None:
        self.versions = [version + 1 for version in self.versions]

    def drain(self) -> tuple[TableChanges, ...]:
        """The changes since the last call, for the ranks."""
        return tuple(log.drain() for log in self._changes)

    def scrub_again(self, changes: tuple[TableChanges, ...]) -> None:
        """A step, whose requests have ended, was not launched, and perhaps no rank has heard of it. Its scrubs are due still;
        its other changes were of its requests only."""
        for log, group in zip(self._changes, changes, strict=True):
            log.scrub_all(group.scrubbed.tolist())

    def check(self, running: Sequence[Request], stored: Sequence[int]) -> None:
        """Raise EngineError unless blocks, reference counts, promises and write rights add up.

        Args:
            stored: per running request the tokens that are in its blocks.
        """
        for g, (group, pool) in enumerate(zip(self.groups, self.pools, strict=True)):
            pool.check([request.blocks[g] for request in running])
            if self.promise:
                self._check_promises(g, running)
            for request, end in zip(running, stored, strict=True):
                if sum(block >= 0 for block in request.blocks[g]) > request.cap[g]:
                    raise EngineError("E-RUN-ACCOUNT", request.id, "holds more blocks than it can ever need")
                for block in request.blocks[g][end // group.block_size :]:
                    if pool.refs[block] != 1 or pool.node_of(block) is not None:
                        raise EngineError("E-RUN-ACCOUNT", request.id, f"may write to block {block}, which others read")

    def _check_promises(self, g: int, running: Sequence[Request]) -> None:
        group, pool = self.groups[g], self.pools[g]
        held = sum(len(request.blocks[g]) for request in running) if group.window is None else 0
        if self._promised[g] != sum(request.cap[g] for request in running) - held:
            raise EngineError("E-RUN-ACCOUNT", f"cache group {g}", "promises differ from what the requests may need")
        if self._promised[g] > (pool.available if group.window is None else group.num_blocks):
            raise EngineError("E-RUN-ACCOUNT", f"cache group {g}", "more blocks are promised than are left")
