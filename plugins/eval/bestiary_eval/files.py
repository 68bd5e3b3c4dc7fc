"""Questions with choices from local files: MMLU's CSV and JSONL, and other multiple-choice JSONL."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bestiary import DataError, MissingInputError

#: Suffixes of files that are questions and not a task's description.
SUFFIXES = (".csv", ".jsonl")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_CONTEXTS, _CHOICES, _LABELS = ("context", "ctx", "question"), ("choices", "endings"), ("gold", "label", "answerKey")
_CSV = "question, A, B, C, D, answer"
_JSONL = "question, choices and answer, or context (ctx, question), choices (endings) and gold (label, answerKey)"


class Question(NamedTuple):
    """One item.

    Args:
        text: the question or context.
        choices: two or more.
        answer: index of the right one.
        subject: what it is about, if the file says so.
        lettered: MMLU's form, where the choices are listed and the answer is a letter.
    """

    text: str
    choices: tuple[str, ...]
    answer: int
    subject: str
    lettered: bool


def read_questions(path: Path) -> list[Question]:
    """The questions of a file, all of one form.

    Raises:
        MissingInputError: no such file.
        DataError: not UTF-8, no questions, or a line that is none, by number.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        raise MissingInputError("E-EVAL-FILE", path.name, "no such file of questions", hint="check the path") from None
    except UnicodeDecodeError as error:
        raise DataError("E-EVAL-FILE", path.name, "not UTF-8 text", hint="save it as UTF-8") from error
    questions = _of_csv(path.name, text) if path.suffix == ".csv" else _of_jsonl(path.name, text)
    if not questions:
        form = _CSV if path.suffix == ".csv" else _JSONL
        raise DataError("E-EVAL-FILE", path.name, "holds no questions", expected=form, hint="write one a line")
    return questions


def _of_csv(name: str, text: str) -> list[Question]:
    found: list[Question] = []
    rows = csv.reader(text.splitlines(keepends=True), strict=True)
    begins = 1
    try:
        for row in rows:
            place, begins = f"{name}, line {begins}", rows.line_num + 1
            if not any(cell.strip() for cell in row) or (not found and row[-1].strip().lower() == "answer"):
                continue
            if len(row) != 6:
                raise _bad(place, "not a question", f"{len(row)} columns", f"6: {_CSV}")
            found.append(_question(place, row[0], row[1:5], row[5].strip(), "", lettered=True))
    except csv.Error as error:
        raise _bad(f"{name}, line {rows.line_num}", "not CSV", str(error), _CSV) from None
    return found


def _of_jsonl(name: str, text: str) -> list[Question]:
    found: list[Question] = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            one = _of_line(f"{name}, line {number}", line)
            if found and found[0].lettered is not one.lettered:
                kinds = ["with gold, label or answerKey", "with answer"]
                raise _bad(
                    f"{name}, line {number}",
                    "of another form than the lines before",
                    kinds[one.lettered],
                    kinds[not one.lettered],
                )
            found.append(one)
    return found


def _of_line(place: str, line: str) -> Question:
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise _bad(place, "not a JSON object", line[:60], f"an object with {_JSONL}")
    lettered = "answer" in value and not any(name in value for name in _LABELS)
    text = _field(place, value, _CONTEXTS)
    choices = _field(place, value, _CHOICES)
    label = value["answer"] if lettered else _field(place, value, _LABELS)
    if isinstance(choices, dict):  # ARC's form
        label = _labelled(place, choices, label)
        choices = choices.get("text")
    subject = value.get("subject", "")
    if not isinstance(text, str) or not isinstance(subject, str):
        raise _bad(place, "the question or subject is no text", line[:60], f"an object with {_JSONL}")
    if not isinstance(choices, list) or not all(isinstance(one, str) for one in choices):
        raise _bad(place, "the choices are no list of texts", repr(choices)[:60], '["…", "…"]')
    return _question(place, text, choices, label, subject, lettered=lettered)


def _labelled(place: str, choices: Mapping[str, Any], label: object) -> object:
    """The index of the choice that has a label: ARC's are letters or numbers from 1. Without labels the label itself."""
    if "label" not in choices:
        return label
    names, texts = choices["label"], choices.get("text")
    if not isinstance(names, list) or not isinstance(texts, list) or len(names) != len(texts):
        raise _bad(place, "not one label for each choice", repr(choices)[:60], '{"text": ["…", …], "label": ["A", …]}')
    known = [str(name).strip() for name in names]
    said = str(label).strip()
    if isinstance(label, bool) or known.count(said) != 1:
        raise _bad(
            place, "the answer is not the label of one choice", repr(label)[:60], f"one of {', '.join(known)}"[:60]
        )
    return known.index(said)


def _field(place: str, value: Mapping[str, Any], names: Sequence[str]) -> Any:
    given = [name for name in names if name in value]
    if not given:
        raise _bad(place, f"has no {' or '.join(names)}", ", ".join(map(str, value))[:60] or "{}", _JSONL)
    return value[given[0]]


def _question(
    place: str, text: str, choices: Sequence[str], label: object, subject: str, *, lettered: bool
) -> Question:
    if not text.strip():
        raise _bad(place, "the question is empty", repr(text)[:60], "text")
    if not 2 <= len(choices) <= len(_LETTERS) or not all(one.strip() for one in choices):
        raise _bad(
            place, "not that many choices, or an empty one", repr(list(choices))[:60], f"2 to {len(_LETTERS)} texts"
        )
    known = _LETTERS[: len(choices)]
    if isinstance(label, str) and label.strip().isdecimal():
        label = int(label)
    if isinstance(label, str) and len(label.strip()) == 1 and label.strip().upper() in known:
        label = known.index(label.strip().upper())
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(choices):
        raise _bad(
            place, "the answer is none of the choices", repr(label)[:60], f"A to {known[-1]} or 0 to {len(known) - 1}"
        )
    return Question(text, tuple(choices), label, subject.replace("_", " ").strip(), lettered)


def _bad(place: str, problem: str, found: str, expected: str) -> DataError:
    return DataError(
        "E-EVAL-FILE", place, problem, found=found, expected=expected, hint="correct the line, or take it out"
    )
