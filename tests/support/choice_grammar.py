"""The simplest guided decoding: the answer is one of some strings. A backend to exercise the hook with."""

from __future__ import annotations

from bestiary.core.guided import Guided
from bestiary.core.runtime.bitmasks import Bitmask, bitmask
from bestiary.spec import GrammarVocabulary


class ChoiceMatcher:
    """Where an answer stands: the bytes that each choice still lacks; None once it has ended."""

    def __init__(self, rests: frozenset[bytes] | None, vocabulary: GrammarVocabulary) -> None:
        self._rests, self._vocabulary = rests, vocabulary

    @property
    def is_terminated(self) -> bool:
        return self._rests is None

    def accept(self, token: int) -> bool:
        if token not in self._allowed():
            return False
        if token in self._vocabulary.end_token_ids:
            self._rests = None
        else:
            said = self._vocabulary.tokens[token] or b""
            self._rests = frozenset(rest[len(said) :] for rest in self._rests or () if rest.startswith(said))
        return True

    def fill(self, row: Bitmask) -> None:
        row[:] = bitmask(self._allowed(), self._vocabulary.size)

    def fork(self) -> ChoiceMatcher:
        return ChoiceMatcher(self._rests, self._vocabulary)

    def _allowed(self) -> set[int]:
        rests = self._rests or frozenset()
        said = enumerate(self._vocabulary.tokens)
        allowed = {token for token, text in said if text and any(rest.startswith(text) for rest in rests)}
        return allowed - self._vocabulary.end_token_ids | (self._vocabulary.end_token_ids if b"" in rests else set())


class ChoiceProvider:
    """Compiles ``Guided(choice=…)`` and nothing else."""

    def compile(self, guided: Guided, vocabulary: GrammarVocabulary) -> ChoiceMatcher:
        if guided.choice is None:
            raise ValueError(f"compiles choices, not {guided.form}")
        return ChoiceMatcher(frozenset(text.encode() for text in guided.choice), vocabulary)
