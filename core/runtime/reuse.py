"""What a request can take over instead of computing it: the longest known prefix, or a running sibling's prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bestiary.core.runtime.blocks import BlockPool
from bestiary.core.runtime.cache_groups import CacheGroup
from bestiary.core.runtime.messages import Ints
from bestiary.core.runtime.prefixes import Node
from bestiary.core.runtime.request import Request, State


class Hit(NamedTuple):
    """What is taken over.

    Args:
        length: tokens in shared blocks; a multiple of every group's block size.
        blocks: per group the shared blocks in order, -1 where a window leaves them behind.
        chains: per group the prefix nodes of those blocks.
        tail: tokens beyond ``length`` that are copied from the beginning of another block.
        sources: per group the block that the tail is copied from.
        miss: why not everything but the last token is taken over; None if it is.
        hidden: more is known under salts that the request has no part in, which it is not told: it could guess prompts.
    """

    length: int
    blocks: list[list[int]]
    chains: list[list[Node]]
    tail: int = 0
    sources: tuple[int, ...] = ()
    miss: str | None = None
    hidden: bool = False

    @property
    def tokens(self) -> int:
        """How many tokens need no computation."""
        return self.length + self.tail


class _Look(NamedTuple):
    """What a group has after a prefix: how many of the wanted tokens can be copied, and from which block; and how many are
    there at all."""

    copied: int
    block: int
    there: int


def nothing(groups: Sequence[CacheGroup], miss: str | None) -> Hit:
    """A hit of no token."""
    return Hit(0, [[] for _ in groups], [[] for _ in groups], miss=miss)


def match(request: Request, groups: Sequence[CacheGroup], pools: Sequence[BlockPool], stride: int, step: int) -> Hit:
    """The longest prefix of the request's tokens that every group still has; at least one token is left to compute.

    Args:
        stride: a length that is a multiple of every group's block size.
        step: number of the step that is being decided. A block may be shared in the step that writes it (each layer
            writes all keys before any is read), but copied only later.
    """
    tokens = request.tokens
    most = len(tokens) - 1
    for pool in pools:
        pool.expire()
    walks = [_walk(group, pool, request, tokens, most) for group, pool in zip(groups, pools, strict=True)]
    length = next(
        (
            length
            for length in range(most // stride * stride, 0, -stride)
            if all(_covers(g, run, length) for g, (_, run) in zip(groups, walks, strict=True))
        ),
        0,
    )
    chains = [chain[: length // g.block_size] for (chain, _), g in zip(walks, groups, strict=True)]
    blocks = []
    for group, chain in zip(groups, chains, strict=True):
        first = group.first_needed(length)
        blocks.append([-1] * min(first, len(chain)) + [node.block for node in chain[first:]])
    ends = [chain[-1] if chain else p.tree.root(request.scope) for chain, p in zip(chains, pools, strict=True)]
    wanted = tokens[length : min(length + min(group.block_size for group in groups), most)].tolist()
    looks = [_look(pool, end, wanted, step) for pool, end in zip(pools, ends, strict=True)]
    tail, sources = _tail(groups, looks)
    missed = length + tail < most
    miss, hidden = _miss(pools, ends, looks, wanted[: tail + 1]) if missed else (None, False)
    return Hit(length, blocks, chains, tail, sources, miss, hidden)


def fork(request: Request, groups: Sequence[CacheGroup]) -> Hit | None:
    """All but the last prompt token of a running sibling whose prompt is stored; None if its window has moved on."""
    parent = request.sibling
    assert parent is not None and parent.state is State.RUNNING
    most = request.prompt_length - 1
    stride = max(group.block_size for group in groups)
    if any(group.block_size != stride for group in groups):
        return None
    length = most // stride * stride
    tail, first_tail = most - length, length // stride
    blocks, sources = [], []
    for group, table in zip(groups, parent.blocks, strict=True):
        first = group.first_needed(most)
        shared = [-1] * min(first, first_tail) + table[min(first, first_tail) : first_tail]
        if any(block < 0 for block in shared[first:]) or (tail and table[first_tail] < 0):
            return None
        blocks.append(shared)
        sources.append(table[first_tail] if tail else -1)
    chains = [chain[:first_tail] for chain in parent.chain]
    return Hit(length, blocks, chains, tail, tuple(sources) if tail else ())


def _walk(
    group: CacheGroup, pool: BlockPool, request: Request, tokens: Ints, most: int
) -> tuple[list[Node], list[int]]:
    """The nodes of the full blocks, and for each how many blocks in a row, itself the last, can be reused."""
    chain: list[Node] = []
    run: list[int] = []
    size, parent, length = group.block_size, pool.tree.root(request.scope), 0
    listed = tokens[: most // size * size].tolist()
    for start in range(0, len(listed), size):
        parent = pool.tree.find(parent, listed[start : start + size])
        length = length + 1 if parent.block >= 0 else 0
        if length == 0 and group.window is None:
            break
        chain.append(parent)
        run.append(length)
    return chain, run


def _covers(group: CacheGroup, run: list[int], length: int) -> bool:
    blocks = length // group.block_size
    return blocks <= len(run) and run[blocks - 1] >= blocks - group.first_needed(length)


def _look(pool: BlockPool, parent: Node, wanted: list[int], step: int) -> _Look:
    """Compare what follows a prefix with the tokens that a request has after it."""
    there = 0
    for common, node in pool.tree.alike(parent, wanted):
        there = max(there, common)
        if node.born < step:  # the others are of this step's requests
            return _Look(common, node.block, there)
    return _Look(0, -1, there)


def _tail(groups: Sequence[CacheGroup], looks: list[_Look]) -> tuple[int, tuple[int, ...]]:
    """How many tokens can be copied, and from which block of each group."""
    tail = min(look.copied for look in looks) if len({group.block_size for group in groups}) == 1 else 0
    return (tail, tuple(look.block for look in looks)) if tail else (0, ())


def _miss(pools: Sequence[BlockPool], ends: list[Node], looks: list[_Look], more: list[int]) -> tuple[str, bool]:
    """Why not one token more is taken over, as the request may know it, and whether a salt of others hides more.

    Args:
        ends: per group the prefix whose continuation is missed.
        more: the tokens after it, up to the first that is not taken over.
    """
    there = [look.there >= len(more) for look in looks]
    if all(there):
        return "partial block", False
    # What one group has, the others had.
    if any(there) or any(pool.tree.evictions.had(end, more) for pool, end in zip(pools, ends, strict=True)):
        return "evicted", False
    tree, end = pools[0].tree, ends[0]
    other = tree.in_the_open(end, more)
    if other is None:
        return "unseen", tree.elsewhere(end, more) is not None
    return "salt" if other.salt != end.scope.salt else "adapter", False
