"""A plugin whose grammar and logits processor admit some tokens by their ids alone: no tokenizer is needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from bestiary import Guided, hookimpl
from bestiary.core.runtime.bitmasks import Bitmask, bitmask
from bestiary.spec import Grammar, GrammarVocabulary, LogitsProcessor

if TYPE_CHECKING:
    from torch import Tensor


class Alternating:
    """Even and odd tokens by turns, as many as the expression has letters, then an end token."""

    def __init__(self, left: int, vocabulary: GrammarVocabulary) -> None:
        self._left, self._vocabulary = left, vocabulary

    @property
    def is_terminated(self) -> bool:
        return self._left < 0

    def accept(self, token: int) -> bool:
        fits = token in self._allowed()
        self._left -= 1
        return fits

    def fill(self, row: Bitmask) -> None:
        row[:] = bitmask(self._allowed(), self._vocabulary.size)

    def fork(self) -> Alternating:
        return Alternating(self._left, self._vocabulary)

    def _allowed(self) -> set[int]:
        ends = set(self._vocabulary.end_token_ids)
        return set(range(self._left % 2, self._vocabulary.size, 2)) - ends if self._left else ends


class Provider:
    def compile(self, guided: Guided, vocabulary: GrammarVocabulary) -> Alternating:
        return Alternating(len(str(guided.regex)), vocabulary)


def low(prompt: Sequence[int], output: Sequence[int], logits: Tensor) -> Tensor:
    """Only the lower half of the vocabulary."""
    logits[len(logits) // 2 :] = -float("inf")
    return logits


@hookimpl
def bestiary_register_grammars(register: Callable[[Grammar], None]) -> None:
    register(Grammar(name="alternating", provider="even_answers:Provider", forms=("regex",)))


@hookimpl
def bestiary_register_logits_processors(register: Callable[[LogitsProcessor], None]) -> None:
    register(LogitsProcessor(name="low", run="even_answers:low"))
