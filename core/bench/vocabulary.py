"""What synthetic prompts are made of: token ids for engines, words for servers."""

from __future__ import annotations

import re
from random import Random
from typing import Protocol

from bestiary.core.bench.asks import Prompt
from bestiary.core.text.tokenizer import Tokenizer

# Short, common and unlike each other: with a space before it, nearly every vocabulary has each as one token.
_WORDS = tuple(
    re.findall(
        r"\w+",
        """
time year people way day man thing woman life child world school state family student group country problem hand part place case
week company system program question work government number night point home water room mother area money story fact month lot
right study book eye job word business issue side kind head house service friend father power hour game line end member law car
city community name president team minute idea kid body information back parent face others level office door health person art
war history party result change morning reason research girl guy moment air teacher force education foot boy age policy music
market sense death record river garden stone summer winter paper letter color sound table chair window bread street village
""",
    )
)


class Vocabulary(Protocol):
    """Makes prompts of a length."""

    def begin(self, random: Random, tokens: int) -> Prompt:
        """A prompt, or its beginning, of so many tokens."""

    def extend(self, beginning: Prompt, random: Random, tokens: int) -> Prompt:
        """A prompt of so many more tokens."""


class Ids:
    """Token ids.

    Args:
        size: they are below it.
    """

    def __init__(self, size: int) -> None:
        self._size = size

    def begin(self, random: Random, tokens: int) -> Prompt:
        return tuple(random.randrange(self._size) for _ in range(tokens))

    def extend(self, beginning: Prompt, random: Random, tokens: int) -> Prompt:
        assert isinstance(beginning, tuple)
        return (*beginning, *(random.randrange(self._size) for _ in range(tokens)))


class Words:
    """Text. With a tokenizer its length is exact wherever that tokenizer makes one token of each word; without one a word is
    taken for a token, and what the server counts is what is reported.

    Args:
        tokenizer: of the model that is served.
    """

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._words, self._frame = _WORDS, 0
        if tokenizer is not None:
            self._frame = len(tokenizer.encode(""))
            single = tuple(w for w in _WORDS if len(tokenizer.encode(f" {w}", add_special_tokens=False)) == 1)
            self._words = single or self._words

    def begin(self, random: Random, tokens: int) -> Prompt:
        return self._text(random, tokens - self._frame)

    def extend(self, beginning: Prompt, random: Random, tokens: int) -> Prompt:
        assert isinstance(beginning, str)
        return beginning + self._text(random, tokens)

    def _text(self, random: Random, words: int) -> str:
        return "".join(f" {random.choice(self._words)}" for _ in range(max(1, words)))
