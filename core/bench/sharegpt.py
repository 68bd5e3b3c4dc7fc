"""Requests of real conversations: a local file in ShareGPT's format."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from bestiary.core.bench.asks import Ask
from bestiary.core.bench.lengths import Lengths
from bestiary.core.errors import DataError, MissingInputError, shown
from bestiary.core.text.tokenizer import Tokenizer

_SHORTEST = 4  # tokens of a prompt or an answer that says anything about speed
_CHARACTERS = 4  # that are taken for a token where nothing can count them
_FORM = '[{"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}]}, …]'


class _Turn(NamedTuple):
    text: str
    input_tokens: int | None
    output_tokens: int


class ShareGPT:
    """First questions of conversations, each with an answer at most as long as the one in the file.

    The seed shuffles the file; each round takes the next requests of it, and begins again at its end.

    Args:
        path: a JSON list, or a JSON object a line in ``.jsonl``.
        tokenizer: counts tokens; without one, four characters are taken for one.
        longest: tokens of prompt and answer together that the target takes; longer ones are left out, as are those with a
            prompt or an answer below four tokens.
        output: tokens of the answers, in place of the file's.
        ignore_eos: answers go on after an end token.

    Raises:
        MissingInputError: no such file.
        DataError: the file is of another format, or has no conversation that can be used.
    """

    def __init__(
        self,
        path: Path,
        tokenizer: Tokenizer | None,
        *,
        seed: int,
        longest: int | None = None,
        output: Lengths | None = None,
        ignore_eos: bool = False,
    ) -> None:
        self._name, self._ignore_eos = path.name, ignore_eos
        drawn = Random(f"{seed} lengths")
        self._turns, why = [], Counter[str]()
        for turns in _conversations(path):
            turn = _count(turns, tokenizer, None if output is None else output.draw(drawn))
            reason = _useless(turn, longest)
            if turn is not None and reason is None:
                self._turns.append(turn)
            else:
                why[str(reason)] += 1
        self.left_out, self._why = why.total(), ", ".join(f"{count} {reason}" for reason, count in why.items())
        if not self._turns:
            raise DataError(
                "E-BENCH-DATASET", path.name, "has no conversation that can be used",
                found=f"{self.left_out} conversations: {self._why or 'none'}",
            )  # fmt: skip
        Random(f"{seed} dataset").shuffle(self._turns)

    def asks(self, count: int, round: int) -> list[Ask]:
        found = []
        for number in range(count):
            turn = self._turns[(round * count + number) % len(self._turns)]
            found.append(Ask(number, turn.text, turn.input_tokens, turn.output_tokens, self._ignore_eos))
        return found

    def describe(self) -> str:
        left = f"; {self.left_out} left out: {self._why}" if self.left_out else ""
        count = len(self._turns)
        return f"{count} conversation{'s' * (count != 1)} of {self._name}{left}"


def _conversations(path: Path) -> list[list[tuple[str, str]]]:
    """Turns of each conversation: (who, text)."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingInputError("E-BENCH-DATASET", path.name, "no such file") from None
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise DataError("E-BENCH-DATASET", path.name, "not UTF-8 text") from error
    try:
        if path.suffix == ".jsonl":
            entries = [json.loads(line) for line in text.split("\n") if line.strip()]
        else:
            entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError("E-BENCH-DATASET", path.name, f"not JSON: {error}"[:120], expected=_FORM) from error
    if not isinstance(entries, list):
        raise DataError("E-BENCH-DATASET", path.name, "not a list", found=type(entries).__name__, expected=_FORM)
    return [_turns(entry, number, path.name) for number, entry in enumerate(entries)]


def _turns(entry: Any, number: int, name: str) -> list[tuple[str, str]]:
    where = f"{name}, entry {number}"
    turns = _first(entry, ("conversations", "conversation", "messages"))
    if not isinstance(turns, list):
        raise DataError("E-BENCH-DATASET", where, "no conversation", found=shown(entry), expected=_FORM)
    found = []
    for turn in turns:
        who, text = _first(turn, ("from", "role")), _first(turn, ("value", "content"))
        if not isinstance(who, str) or not isinstance(text, str):
            raise DataError("E-BENCH-DATASET", where, "no turn", found=shown(turn), expected=_FORM)
        found.append((who, text))
    return found


def _first(entry: Any, names: tuple[str, ...]) -> Any:
    """What an object has under the first of the names that it knows."""
    return next((entry[name] for name in names if name in entry), None) if isinstance(entry, dict) else None


def _count(turns: list[tuple[str, str]], tokenizer: Tokenizer | None, output: int | None) -> _Turn | None:
    """The first question with its answer; None if the conversation does not begin with these."""
    spoken = [(who, text) for who, text in turns if who != "system"]
    if len(spoken) < 2 or spoken[0][0] not in ("human", "user") or spoken[1][0] not in ("gpt", "assistant", "chatgpt"):
        return None
    (_, asked), (_, answered) = spoken[:2]
    if tokenizer is None:
        length, wanted = None, max(1, len(answered) // _CHARACTERS)
    else:
        length, wanted = len(tokenizer.encode(asked)), len(tokenizer.encode(answered, add_special_tokens=False))
    return _Turn(asked, length, output or wanted)


def _useless(turn: _Turn | None, longest: int | None) -> str | None:
    """Why a conversation is left out; None: it is not."""
    if turn is None:
        return "without a question and its answer at the beginning"
    length = len(turn.text) // _CHARACTERS if turn.input_tokens is None else turn.input_tokens
    if min(length, turn.output_tokens) < _SHORTEST:
        return f"with a question or an answer below {_SHORTEST} tokens"
    if longest is not None and length + turn.output_tokens > longest:
        return f"above the {longest} tokens that the target takes"
    return None
