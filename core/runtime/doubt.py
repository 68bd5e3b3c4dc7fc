"""Whose fault it is when a request's logits are broken: its own, or that of what it took over from others."""

from __future__ import annotations

from bestiary.core.runtime.request import Request
from bestiary.core.runtime.scheduler import Scheduler


def compute_alone(scheduler: Scheduler, request: Request) -> bool:
    """The logits of a running request are broken: compute it anew without what it took over, if that may be the cause.

    Returns:
        False: it took nothing over, or has had a good token since, so the fault is its own. What it stored itself before a
        good token showed it to be sound is forgotten, and all that goes on from there.
    """
    hit, unproven = request.hit, len(request.tokens) == request.began
    if unproven:
        scheduler.tables.forget_own(request)
    if hit is None or not (hit.tokens and unproven):
        return False
    pools = scheduler.tables.pools
    for g, pool in enumerate(pools):
        first = hit.chains[g][0] if hit.chains[g] else pool.node_of(hit.sources[g]) if hit.sources else None
        if first is not None:
            request.suspects += ((g, first),)
    request.reusable, request.sibling = False, None
    scheduler.repeat(request)
    return True


def condemn(scheduler: Scheduler, request: Request) -> None:
    """A request that was computed alone got a good token: what it had taken over is not offered any more."""
    for g, node in request.suspects:
        scheduler.tables.forget_branch(g, node)
    request.suspects = ()
