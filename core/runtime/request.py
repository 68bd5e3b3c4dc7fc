"""A request while it is in the engine. Knows no tokenizer and no tensor."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from bestiary.core.outputs import FinishReason
from bestiary.core.resolved_params import ResolvedParams
from bestiary.core.runtime.messages import Ints
from bestiary.core.runtime.prefixes import Scope
from bestiary.core.runtime.tap_rows import Tapped

if TYPE_CHECKING:
    from bestiary.core.runtime.prefixes import Node
    from bestiary.core.runtime.reuse import Hit
    from bestiary.core.runtime.slots import Slots


class State(Enum):
    """Where a request is; it leaves ``FINISHED`` never."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Request:
    """One prompt and what has been generated for it.

    Attributes:
        prompt_length: how many of its tokens are the prompt.
        max_length: most tokens, prompt included, that it may reach.
        scope: requests of other scopes share no block with it.
        sibling: a request with the same prompt whose blocks it shares while that one runs (``n`` answers to a prompt).
        follows: an earlier request that it goes on for, and whose place in the queue it takes.
        part: a step of a search, which is what was submitted and says itself when it ends.
        streams: someone waits for each token, so long prompts of others are paced.
        tapped: the tensors it keeps of its tokens, all of which it computes itself; None where it keeps none.
        rank: its place in the queue; lower runs sooner.
        slot: its place in the engine's arrays while it runs, else -1.
        blocks: per cache group the block ids in order of position; -1 where a window has left the block behind.
        chain: per cache group the prefix nodes of its full blocks.
        cap: per cache group the most blocks it can hold at once.
        plain: its token is the argmax of its logits and nothing else is asked of them.
        restricted: what its next token may be depends on its answer so far.
        watched: someone wants every token as it comes.
        reusable: its blocks may be taken from and given to the prefix cache.
        num_cached: prompt tokens that were found in the cache when it was first admitted; None before.
        cache_miss: why not more of them, None if no more were possible.
        salt_hides: more were there, under salts of others, which the request is not told.
        num_scored: prompt tokens whose log-probabilities are known.
        prompt_step: number of the step that stores the last prompt token; 0 before.
        admitted: number of the step in which it was last admitted.
        began: how many tokens it had then.
        hit: what it took over then; None before.
        suspects: cache groups and prefixes that it stood on when its logits were broken, while it is computed without them.
        preemptions: how often it had to give up its blocks.
    """

    __slots__ = (
        "_kept",
        "_slots",
        "admitted",
        "began",
        "blocks",
        "cache_miss",
        "cap",
        "chain",
        "finish_reason",
        "follows",
        "hit",
        "id",
        "max_length",
        "num_cached",
        "num_scored",
        "params",
        "part",
        "plain",
        "preemptions",
        "prompt_length",
        "prompt_step",
        "rank",
        "restricted",
        "reusable",
        "salt_hides",
        "scope",
        "sibling",
        "slot",
        "state",
        "stop_reason",
        "streams",
        "suspects",
        "tapped",
        "watched",
    )

    def __init__(
        self,
        request_id: str,
        prompt: Sequence[int],
        params: ResolvedParams,
        *,
        max_seq_len: int,
        sibling: Request | None = None,
        follows: Request | None = None,
        part: bool = False,
        streams: bool = False,
        tapped: Tapped | None = None,
    ) -> None:
        self.id = request_id
        self._kept: Ints = np.asarray(prompt, np.int32)
        self._slots: Slots | None = None
        self.prompt_length = len(self._kept)
        self.params = params
        self.plain = params.plain
        self.restricted = params.restricted or bool(params.min_tokens and params.end_token_ids)
        self.watched = False
        room = max_seq_len if params.max_tokens is None else self.prompt_length + params.max_tokens
        self.max_length = min(room, max_seq_len)
        self.scope = Scope(params.cache_salt)
        self.sibling, self.streams = sibling, streams
        self.follows, self.part, self.tapped = follows, part, tapped
        self.rank = 0.0
        self.slot = -1
        self.blocks: list[list[int]] = []
        self.chain: list[list[Node]] = []
        self.cap: tuple[int, ...] = ()
        # Logits of a cached prompt token are never computed, so prompt logprobs need the whole prompt to run.
        self.reusable = params.reuse_prefix and params.prompt_logprobs is None
        self.num_cached: int | None = None
        self.cache_miss: str | None = None
        self.salt_hides = False
        self.num_scored = 1  # nothing precedes the first token
        self.prompt_step = self.preemptions = self.admitted = self.began = 0
        self.hit: Hit | None = None
        self.suspects: tuple[tuple[int, Node], ...] = ()
        self.state = State.WAITING
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None

    def __repr__(self) -> str:
        return f"Request({self.id!r}, {self.state.value}, {len(self.tokens)} tokens)"

    @property
    def tokens(self) -> Ints:
        """Prompt and output so far; a view that the next step may outdate."""
        return self._kept if self._slots is None else self._slots.known_tokens(self.slot)

    @property
    def prompt(self) -> list[int]:
        """The prompt's tokens."""
        found: list[int] = self.tokens[: self.prompt_length].tolist()
        return found

    @property
    def output(self) -> list[int]:
        """The generated tokens."""
        found: list[int] = self.tokens[self.prompt_length :].tolist()
        return found

    @property
    def num_output(self) -> int:
        """How many tokens have been generated."""
        return len(self.tokens) - self.prompt_length

    def enter(self, slots: Slots, slot: int) -> None:
        """Run in a slot: tokens live in the engine's arrays from now on."""
        self._slots, self.slot = slots, slot

    def leave(self) -> None:
        """Give up the slot and keep the tokens."""
        self._kept, self._slots, self.slot = self.tokens.copy(), None, -1
