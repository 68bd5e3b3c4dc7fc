"""A request while it is in the engine. Knows no tokenizer and no tensor."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING

from bestiary.core.outputs import FinishReason
from bestiary.core.sampling_params import ResolvedParams

if TYPE_CHECKING:
    from bestiary.core.runtime.blocks import Node


class State(Enum):
    """Where a request is; it leaves ``FINISHED`` never."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Request:
    """One prompt and what has been generated for it.

    Attributes:
        tokens: prompt and output; only the scheduler appends.
        prompt_length: how many of them are the prompt.
        max_length: most tokens, prompt included, that it may reach.
        num_computed: leading tokens whose keys and values are in the cache.
        num_cached: leading tokens that were found in the cache at admission.
        blocks: per cache group the block ids in order of position; -1 where a window has left the block behind.
        chain: per cache group the prefix nodes of its full blocks.
        cap: per cache group the most blocks it can hold at once.
        next_boundary: num_computed at which the next block of some group is full.
        plain: its token is the argmax of its logits and nothing else is asked of them.
        room: tokens that the blocks it holds can take.
        reusable: its blocks may be taken from and given to the prefix cache.
    """

    __slots__ = (
        "blocks",
        "cap",
        "chain",
        "finish_reason",
        "id",
        "max_length",
        "next_boundary",
        "num_cached",
        "num_computed",
        "params",
        "plain",
        "prompt_length",
        "reusable",
        "room",
        "state",
        "stop_reason",
        "tokens",
    )

    def __init__(self, request_id: str, prompt: Sequence[int], params: ResolvedParams, *, max_seq_len: int) -> None:
        self.id = request_id
        self.tokens = list(prompt)
        self.prompt_length = len(self.tokens)
        self.params = params
        ends_late = bool(params.min_tokens and params.end_token_ids)
        scored = params.logprobs is not None or params.prompt_logprobs is not None
        self.plain = params.greedy and not (params.penalized or params.logit_bias or ends_late or scored)
        room = max_seq_len if params.max_tokens is None else self.prompt_length + params.max_tokens
        self.max_length = min(room, max_seq_len)
        self.num_computed = 0
        self.num_cached = 0
        self.blocks: list[list[int]] = []
        self.chain: list[list[Node]] = []
        self.cap: tuple[int, ...] = ()
        self.next_boundary = 0
        self.room = 0
        # Logits of a cached prompt token are never computed, so prompt logprobs need the whole prompt to run.
        self.reusable = params.prompt_logprobs is None
        self.state = State.WAITING
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None

    def __repr__(self) -> str:
        return f"Request({self.id!r}, {self.state.value}, {self.num_computed}/{len(self.tokens)} tokens computed)"

    @property
    def prompt(self) -> list[int]:
        """The prompt's tokens."""
        return self.tokens[: self.prompt_length]

    @property
    def output(self) -> list[int]:
        """The generated tokens."""
        return self.tokens[self.prompt_length :]

    @property
    def num_output(self) -> int:
        """How many tokens have been generated."""
        return len(self.tokens) - self.prompt_length
