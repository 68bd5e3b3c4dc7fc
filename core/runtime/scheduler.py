"""Which tokens run in the next step, and what their results mean. Integers only: no torch, no tokenizer.

First come, first served. A step runs every decoding request's next token first, then chunks of prompts, then admits
waiting requests, within ``max_num_tokens`` tokens and ``max_batch_size`` requests. Nothing is preempted, because a
request is admitted only when all it can ever need is free.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from bestiary.core.errors import RequestError
from bestiary.core.outputs import FinishReason
from bestiary.core.runtime.batch import Batch, Segment
from bestiary.core.runtime.block_tables import BlockTables
from bestiary.core.runtime.cache_groups import CacheGroup
from bestiary.core.runtime.request import Request, State

_FIRST, _NONE = range(1), range(0)


class Scheduler:
    """The queue, the running requests and their blocks.

    Args:
        groups: the engine's cache groups.
        max_batch_size: most requests that run at a time.
        max_num_tokens: most tokens in a step.
        prefix_caching: reuse the blocks of equal prefixes.
        key: secret of the prefix hash chains; random unless given.
    """

    def __init__(
        self,
        groups: Sequence[CacheGroup],
        *,
        max_batch_size: int,
        max_num_tokens: int,
        prefix_caching: bool = True,
        key: bytes | None = None,
    ) -> None:
        self.max_batch_size, self.max_num_tokens = max_batch_size, max_num_tokens
        self.tables = BlockTables(groups, max_num_tokens=max_num_tokens, prefix_caching=prefix_caching, key=key)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self._stuck_at = -1  # the tables' version at which the first waiting request did not fit

    @property
    def idle(self) -> bool:
        """Nothing runs and nothing waits."""
        return not self.running and not self.waiting

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises:
            RequestError: it could not run even alone.
        """
        self.admissible(request)
        self.waiting.append(request)

    def admissible(self, request: Request) -> None:
        """Work out what the request needs.

        Raises:
            RequestError: more than there is; the message shows the arithmetic.
        """
        request.cap = self.tables.caps(request)
        for g, group in enumerate(self.tables.groups):
            if request.cap[g] > group.num_blocks:
                output = request.max_length - request.prompt_length
                span = (
                    ""
                    if group.window is None
                    else f", of which a window of {group.window} and a chunk are held at once"
                )
                raise RequestError(
                    "E-REQ-CACHE",
                    f"request {request.id}",
                    "can never fit the KV cache",
                    found=f"{request.prompt_length} prompt + {output} output - 1 tokens{span} = {request.cap[g]} blocks of "
                    f"{group.block_size} tokens",
                    expected=f"at most {group.num_blocks} blocks",
                    hint="lower max_tokens, shorten the prompt, or give the KV cache more memory",
                )

    def decide(self) -> Batch:
        """The next step. Takes the blocks its tokens are written to; changes nothing else of a running request."""
        budget = self.max_num_tokens
        segments: list[Segment] = []
        chunks: list[Request] = []
        for request in self.running:
            start = request.num_computed
            if len(request.tokens) - start != 1:
                chunks.append(request)
            elif budget:
                budget -= 1
                if start >= request.room:
                    self.tables.extend(request, start + 1)
                segments.append(Segment(request, start, 1, _FIRST))
        for request in chunks:
            budget -= self._chunk(request, budget, segments)
        while budget and self._admit():
            budget -= self._chunk(self.running[-1], budget, segments)
        return Batch(tuple(segments))

    def _chunk(self, request: Request, budget: int, segments: list[Segment]) -> int:
        """Add as much of a prompt as the budget allows; how much that was."""
        start = request.num_computed
        count = min(len(request.tokens) - start, budget)
        if count:
            self.tables.extend(request, start + count)
            wanted = request.params.prompt_logprobs is not None
            last = range(count - 1, count) if start + count == len(request.tokens) else _NONE
            segments.append(Segment(request, start, count, range(count) if wanted else last))
        return count

    def _admit(self) -> bool:
        """Let the first waiting request run if it fits."""
        if not self.waiting or len(self.running) >= self.max_batch_size or self._stuck_at == self.tables.version:
            return False
        request = self.waiting[0]
        hit = self.tables.match(request)
        if not self.tables.fits(request, hit):
            self._stuck_at = self.tables.version
            return False
        self.waiting.popleft()
        self.tables.admit(request, hit)
        request.state = State.RUNNING
        self.running.append(request)
        return True

    def apply(self, batch: Batch, tokens: Sequence[int | None]) -> list[Request]:
        """Take in a step's results.

        Args:
            tokens: per segment the sampled token, None where none was sampled.

        Returns:
            The requests that their token ended, by an end token, ``max_tokens`` or the context's length. Requests that
            were ended since ``decide`` are left alone.
        """
        ended: list[Request] = []
        for segment, token in zip(batch.segments, tokens, strict=True):
            request = segment.request
            if request.state is not State.RUNNING:
                continue
            end = segment.start + segment.count
            if end < request.next_boundary:
                request.num_computed = end
            else:
                self.tables.computed(request, end)
            if token is None:
                continue
            request.tokens.append(token)
            if token in request.params.end_token_ids and request.num_output > request.params.min_tokens:
                self.finish(request, "stop", token if token in request.params.stop_token_ids else None)
                ended.append(request)
            elif len(request.tokens) >= request.max_length:
                self.finish(request, "length")
                ended.append(request)
        return ended

    def finish(self, request: Request, reason: FinishReason, stop_reason: int | str | None = None) -> bool:
        """End a request in any state and take its blocks back; False if it had ended already."""
        if request.state is State.FINISHED:
            return False
        if request.state is State.RUNNING:
            self.running.remove(request)
            self.tables.release(request)
        else:
            self.waiting.remove(request)
            self._stuck_at = -1
        request.state = State.FINISHED
        request.finish_reason, request.stop_reason = reason, stop_reason
        return True

    def reset_prefix_cache(self) -> None:
        """Forget every prefix; running requests go on, and offer nothing to later ones."""
        self.tables.reset(self.running)

    def check(self) -> None:
        """Raise EngineError unless all blocks are accounted for."""
        self.tables.check(self.running)
