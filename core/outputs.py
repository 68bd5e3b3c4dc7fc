"""What a request gives back. Field names follow the habits of the field (vLLM's RequestOutput)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = [
    "CompletionOutput",
    "FinishReason",
    "Logprob",
    "LogprobDict",
    "RequestMetrics",
    "RequestOutput",
    "StreamPiece",
]

FinishReason = Literal["stop", "length", "abort", "error"]


class Logprob(NamedTuple):
    """Natural log of a token's probability under the raw logits, its rank (1 is the likeliest), and its text."""

    logprob: float
    rank: int
    decoded_token: str | None = None


LogprobDict = dict[int, Logprob]


@dataclass
class CompletionOutput:
    """One answer to a prompt.

    Args:
        index: number of the answer among those of its request.
        text: the decoded answer; it ends before a stop string or stop token. Empty without a tokenizer.
        token_ids: all generated tokens, the one that ended the answer included.
        logprobs: per generated token, the chosen token and the likeliest ones; None unless asked for.
        cumulative_logprob: sum of the chosen tokens' logprobs; None unless ``logprobs`` or a
            beam search was asked for.
        finish_reason: ``"stop"`` (end token, stop token or stop string), ``"length"``, ``"abort"``, ``"error"``; None
            while it runs.
        score: of beam search, ``cumulative_logprob / length ** length_penalty``; else None.
        stop_reason: the stop string or the id in ``stop_token_ids`` that ended it; for ``"error"``, what went wrong.
    """

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[LogprobDict] | None = None
    cumulative_logprob: float | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    score: float | None = None


@dataclass
class RequestMetrics:
    """Times on the monotonic clock, in seconds; None for what has not happened."""

    arrival_time: float
    first_token_time: float | None = None
    finished_time: float | None = None

    @property
    def time_to_first_token(self) -> float | None:
        """Seconds from submission to the first token."""
        return None if self.first_token_time is None else self.first_token_time - self.arrival_time


@dataclass
class RequestOutput:
    """A request and its answers.

    Args:
        prompt: the text as it was given, also where ``truncate_prompt_tokens`` left some of it out; None if ids were given.
        prompt_token_ids: the tokens that were used.
        prompt_logprobs: one entry a prompt token, the first is None; None unless asked for.
        num_cached_tokens: prompt tokens whose keys and values were reused from other requests.
        cache_miss: why not all but the last one, which is always computed; None if they were. ``"unseen"``: nobody had the
            same prompt further, not by one token; ``"evicted"``: someone had, and the blocks were needed, expired or reset (an
            engine remembers four times as many as it has blocks); ``"salt"``: only requests without a salt had, and this one has
            one (those of other salts are ``"unseen"``, so that no prompt can be guessed); ``"adapter"``: only those of others had;
            ``"partial block"``: the rest lies in a block that can't be copied: the same step writes it, or the model's cache
            groups have different block sizes;
            ``"disabled"``: by the engine, ``reuse_prefix=False``, ``prompt_logprobs`` or ``taps``.
        num_preemptions: how often its blocks were taken and it was computed anew.
        taps: by the names that were asked for, an array ``[tokens, …]`` of the tensor's rows: those of every token that was
            computed, which are the prompt's and the output's but the last. float32 of floating tensors, integers as they are.
            Empty where nothing was computed; None unless asked for.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics
    prompt_logprobs: list[LogprobDict | None] | None = None
    num_cached_tokens: int = 0
    cache_miss: str | None = None
    num_preemptions: int = 0
    taps: dict[str, npt.NDArray[Any]] | None = None


@dataclass(frozen=True)
class StreamPiece:
    """What one or more steps added to an answer. ``str(piece)`` is the text; the last has a ``finish_reason``.

    ``index`` tells the answers of a request with ``n`` above 1 apart. The last piece has the ``taps`` that were asked for, as
    ``RequestOutput`` has them.
    """

    text: str
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    index: int = 0
    taps: dict[str, npt.NDArray[Any]] | None = None

    def __str__(self) -> str:
        return self.text
