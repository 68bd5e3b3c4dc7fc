"""Refusing what can never run, with the arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

from bestiary.core.errors import RequestError
from bestiary.core.runtime.cache_groups import CacheGroup
from bestiary.core.runtime.request import Request


def check_fit(request: Request, groups: Sequence[CacheGroup]) -> None:
    """Refuse a request whose ``cap`` of blocks is more than a group has.

    Raises:
        RequestError: it could not run even alone.
    """
    for cap, group in zip(request.cap, groups, strict=True):
        if cap > group.num_blocks:
            output = request.max_length - request.prompt_length
            span = "" if group.window is None else f", of which a window of {group.window} and a chunk are held at once"
            raise RequestError(
                "E-REQ-CACHE",
                f"request {request.id}",
                "can never fit the KV cache",
                found=f"{request.prompt_length} prompt + {output} output - 1 tokens{span} = {cap} blocks of "
                f"{group.block_size} tokens",
                expected=f"at most {group.num_blocks} blocks",
                hint="lower max_tokens, shorten the prompt, or give the KV cache more memory",
            )
