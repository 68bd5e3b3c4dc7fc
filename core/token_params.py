"""What ranks are told of a request's parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

    # The prompt's token ids, the generated ones so far, and the next token's logits, [V] float32 → logits of that shape.
    Processor: TypeAlias = Callable[[Sequence[int], Sequence[int], Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenParams:
    """How a request's tokens are chosen from its logits, named as in ``SamplingParams``.

    Plain data but for functions among the processors, which only a rank in the host's process can be given. What the host
    alone knows (texts, grammars, lengths, the cache) is not here: it sends what follows from that, step by step.

    Args:
        logits_processors: functions, and names of registered ones.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int
    logit_bias: Mapping[int, float]
    logits_processors: tuple[Processor | str, ...]

    @property
    def drawn(self) -> bool:
        """The token is drawn, not the likeliest."""
        return self.temperature != 0.0

    @property
    def penalized(self) -> bool:
        """Some penalty changes the logits, so token counts are kept."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0
