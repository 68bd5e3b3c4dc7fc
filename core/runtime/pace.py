"""How much of a prompt may run beside decoding streams, so that nobody who reads along sees a gap. Imports no torch."""

from __future__ import annotations

from typing import Final

#: A step with a prompt's chunk in it may take so many times what a step without takes. Below the 3 that readers are
#: promised, because a step's time is predicted, not known.
STRETCH: Final = 2.0
#: Steps with a chunk between two that only decode, which show what the streams cost by now: their contexts grow.
LOOK_EVERY: Final = 16
_FIRST: Final = 16  # tokens of a chunk while its cost is not known, and of the least chunk that tells a token's cost
_LEAST: Final = 4  # tokens that run in any case, so that a prompt comes to its end
_MEMORY: Final = 0.2  # weight of the newest measurement


class Pace:
    """Learns from the steps' times what a decode step and a prompt token cost.

    Until both are known, chunks beside streams are small: a stream that has just begun must not wait for a guess. A prompt
    token that seems to cost nothing is not known: its step was quicker than the decodes before it.
    """

    def __init__(self) -> None:
        self._decode: float | None = None  # seconds of a step that only decodes
        self._token: float | None = None  # seconds a prompt token adds
        self._mixed = 0  # steps since the last one that only decoded

    def chunk(self) -> int:
        """Most prompt tokens that may run in the next step, beside streams; 0 where the streams' own cost is to be seen."""
        if self._mixed >= LOOK_EVERY:
            return 0
        if self._decode is None or not self._token:
            return _FIRST
        return max(_LEAST, int((STRETCH - 1) * self._decode / self._token))

    def saw(self, decodes: int, prompt_tokens: int, seconds: float) -> None:
        """A step took so long."""
        if not prompt_tokens:
            self._decode, self._mixed = _blend(self._decode, seconds), 0
            return
        self._mixed = self._mixed + 1 if decodes else 0
        alone = self._decode if decodes and self._decode is not None else 0.0
        if prompt_tokens < _FIRST and not (alone and seconds > STRETCH * alone):
            return  # mostly what any chunk costs, and nobody saw a gap
        fresh = max(seconds - alone, 0.0) / prompt_tokens
        # A dearer token than thought is believed at once (a longer context behind it), a cheaper one slowly.
        self._token = fresh if self._token is not None and fresh > self._token else _blend(self._token, fresh)


def _blend(old: float | None, new: float) -> float:
    return new if old is None else old + _MEMORY * (new - old)
