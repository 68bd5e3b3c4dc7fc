"""Token sequences to calibrate on, from a person's file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from bestiary.core.errors import DataError, shown
from bestiary.core.text.files import read_text
from bestiary.core.text.tokenizer import Tokenizer, has_tokenizer, no_tokenizer

_TEXTS = ("text", "prompt")
_FORM = '{"text": "…"}, {"prompt": "…"} or {"tokens": [1, 2, …]} on each line'


def sequences_of(
    file: Path, tokenizer: Path, *, samples: int = 128, length: int = 512, seed: int = 0
) -> list[list[int]]:
    """Token sequences from a text, or from the lines of a ``.jsonl``; the same for the same arguments.

    A text is divided into ``samples`` equal parts, or as many as have ``length`` tokens, and of each part comes a window of
    that length, after the model's begin token if it has one; a shorter text is one sequence. Of a ``.jsonl`` with more lines
    than ``samples`` come that many at random; a line is a sequence, cut to ``length``.

    Args:
        tokenizer: the directory that holds it; not needed where all lines have ``tokens``.
        samples: most sequences.
        length: most tokens of one.

    Raises:
        MissingInputError: no such file, or no tokenizer where one is needed.
        DataError: the file is no UTF-8, has no tokens, or a line is not of that form.
    """
    text = read_text(file)
    if file.suffix == ".jsonl":
        return _of_lines(text, file.name, tokenizer, samples, length, Random(f"{seed} calibration"))
    return _of_text(text, file.name, _tokenizer(tokenizer), samples, length, Random(f"{seed} calibration"))


def _of_text(text: str, name: str, tokenizer: Tokenizer, samples: int, length: int, random: Random) -> list[list[int]]:
    begin = tokenizer.encode("", add_special_tokens=True)[:1]
    tokens = tokenizer.encode(text, add_special_tokens=False)
    if not tokens:
        raise DataError("E-QUANT-TEXT", name, "has no tokens to calibrate on")
    size = max(1, length - len(begin))
    parts = max(1, min(samples, len(tokens) // size))
    windows = []
    for part in range(parts):
        first, after = len(tokens) * part // parts, len(tokens) * (part + 1) // parts
        start = random.randint(first, max(first, after - size))
        windows.append([*begin, *tokens[start : start + size]])
    return windows


def _of_lines(text: str, name: str, directory: Path, samples: int, length: int, random: Random) -> list[list[int]]:
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise DataError("E-QUANT-TEXT", name, "has no line to calibrate on")
    entries = [(f"{name}, line {number}", _entry(f"{name}, line {number}", line)) for number, line in lines]
    if len(entries) > samples:
        entries = [entries[index] for index in sorted(random.sample(range(len(entries)), samples))]
    needed = any(isinstance(entry, str) for _, entry in entries)
    tokenizer = _tokenizer(directory) if needed else None
    return [_tokens(where, entry, tokenizer)[:length] for where, entry in entries]


def _tokenizer(directory: Path) -> Tokenizer:
    if not has_tokenizer(directory):
        hint = 'calibrate with a .jsonl file that has token ids, {"tokens": [1, 2, …]} on each line'
        raise no_tokenizer(directory.resolve().name, hint)
    return Tokenizer.load(directory)


def _entry(where: str, line: str) -> str | list[int]:
    """The text or the tokens of a line."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError("E-QUANT-TEXT", where, f"is not JSON: {error}"[:120], expected=_FORM) from error
    if not isinstance(entry, dict):
        raise _wrong(where, entry)
    if (tokens := entry.get("tokens")) is not None:
        if not isinstance(tokens, list) or not tokens or any(type(one) is not int or one < 0 for one in tokens):
            raise _wrong(where, tokens)
        return tokens
    for text in (entry.get(field) for field in _TEXTS):
        if isinstance(text, str) and text:
            return text
    raise _wrong(where, entry)


def _wrong(where: str, found: Any) -> DataError:
    return DataError("E-QUANT-TEXT", where, "has nothing to calibrate on", found=shown(found), expected=_FORM)


def _tokens(where: str, entry: str | Sequence[int], tokenizer: Tokenizer | None) -> list[int]:
    if not isinstance(entry, str):
        return list(entry)
    assert tokenizer is not None
    tokens = tokenizer.encode(entry)
    if not tokens:
        raise _wrong(where, entry)
    return tokens
