"""Requests of drawn lengths."""

from __future__ import annotations

from random import Random

from bestiary.core.bench.asks import Ask
from bestiary.core.bench.lengths import Lengths
from bestiary.core.bench.vocabulary import Vocabulary


class Synthetic:
    """Random prompts whose lengths, and those of the answers, are drawn; the same seed gives the same requests.

    Args:
        shared_prefix: tokens before each prompt that it shares with others of its group.
        groups: how many different beginnings there are.
        ignore_eos: answers are as long as drawn.
    """

    left_out = 0

    def __init__(
        self,
        vocabulary: Vocabulary,
        input: Lengths,
        output: Lengths,
        *,
        seed: int,
        shared_prefix: int = 0,
        groups: int = 1,
        ignore_eos: bool = True,
    ) -> None:
        self._vocabulary, self._input, self._output = vocabulary, input, output
        self._seed, self._prefix, self._groups, self._ignore_eos = seed, shared_prefix, groups, ignore_eos

    def asks(self, count: int, round: int) -> list[Ask]:
        lengths, content = Random(f"{self._seed} lengths"), Random(f"{self._seed} content {round}")
        beginnings = [self._vocabulary.begin(content, self._prefix) for _ in range(self._groups if self._prefix else 0)]
        found = []
        for number in range(count):
            own, output = self._input.draw(lengths), self._output.draw(lengths)
            if beginnings:
                beginning = beginnings[lengths.randrange(self._groups)]
                prompt = self._vocabulary.extend(beginning, content, own)
            else:
                prompt = self._vocabulary.begin(content, own)
            found.append(Ask(number, prompt, self._prefix + own, output, self._ignore_eos))
        return found

    def describe(self) -> str:
        groups = "1 group" if self._groups == 1 else f"{self._groups} groups"
        prefix = f", {self._prefix} tokens before them shared in {groups}" if self._prefix else ""
        return f"prompts of {self._input.text} tokens{prefix}, answers of {self._output.text}"
