"""What ``--tasks`` names, as lm-eval wants it: its own tasks by name, and local questions made into tasks."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestiary import UsageError

from .files import SUFFIXES, Question, read_questions

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

_ABOUT = "The following are multiple choice questions (with answers){{ ' about ' + subject if subject else '' }}.\n\n"


def split(said: Sequence[str]) -> list[str]:
    """``--tasks``: separated by commas, and repeatable.

    Raises:
        UsageError: none at all.
    """
    names = [name.strip() for text in said for name in text.split(",") if name.strip()]
    if not names:
        raise UsageError("E-EVAL-TASKS", "--tasks", "names no task", hint="name tasks, or files of questions")
    return list(dict.fromkeys(names))


def is_file(name: str) -> bool:
    """Whether a task is a file of questions."""
    return Path(name).suffix in SUFFIXES


def is_yaml(name: str) -> bool:
    """Whether a task is a file in lm-eval's own form."""
    return Path(name).suffix in (".yaml", ".yml")


def is_whole(name: str) -> bool:
    """Whether a task is a file that says all of it; a group's may name tasks of lm-eval's own."""
    return is_file(name) or (is_yaml(name) and group_of(name) is None)


def group_of(name: str) -> str | None:
    """The name of the group that a task file describes; None for a task's."""
    found = re.search(r"^group:\s*(\S+)", Path(name).read_text(encoding="utf-8"), re.MULTILINE)
    return None if found is None else found[1].strip("'\"")


def find(names: Sequence[str], manager: TaskManager) -> list[Any]:
    """What lm-eval's ``simple_evaluate`` takes: names, paths of YAML files, and configs made of files of questions.

    Args:
        manager: lm-eval's, which knows the names.

    Raises:
        UsageError: a name that nothing has.
        MissingInputError, DataError: a file that isn't there, or is damaged.
    """
    found: list[Any] = []
    taken: set[str] = set()
    for name in names:
        if is_file(name):
            config = from_questions(Path(name), read_questions(Path(name)))
            if config["task"] in taken:
                raise UsageError(
                    "E-EVAL-TASKS", name, "another file of questions has its name", hint="rename one of them"
                )
            taken.add(config["task"])
            found.append(config)
        elif is_yaml(name):
            # lm-eval finds groups by name only, in the directories that it was told of.
            found.append(group_of(name) or name)
        else:
            matches = manager.match_tasks([name])
            if not matches:
                raise _unknown(name, manager.all_tasks)
            found += matches
    return found


def _unknown(name: str, known: Sequence[str]) -> UsageError:
    near = difflib.get_close_matches(name, known, 5) or [one for one in known if name.lower() in one.lower()][:5]
    hint = f"close to it: {', '.join(near)}" if near else "--include-path names a directory with more tasks"
    expected = f"one of lm-eval's {len(known)} names, or a file ending in {', '.join(SUFFIXES)} or .yaml"
    return UsageError("E-EVAL-TASKS", name, "no such task", expected=expected, hint=hint)


def from_questions(path: Path, questions: Sequence[Question]) -> dict[str, Any]:
    """The config of an lm-eval task. MMLU's form as its own ``mmlu`` tasks have it; other choices are scored as texts."""
    lettered = questions[0].lettered
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", path.stem).strip("_") or "questions"
    config: dict[str, Any] = {
        "task": name,
        "custom_dataset": partial(_dataset, [_document(one) for one in questions]),
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "prompt",
        "doc_to_choice": "answers",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    if lettered:
        return {**config, "description": _ABOUT}
    config["metric_list"].append({"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True})
    return config


def _document(one: Question) -> dict[str, Any]:
    letters = [chr(ord("A") + index) for index in range(len(one.choices))]
    listed = "".join(f"{letter}. {choice}\n" for letter, choice in zip(letters, one.choices, strict=True))
    return {
        "question": one.text,
        "prompt": f"{one.text.strip()}\n{listed}Answer:" if one.lettered else one.text.rstrip(),
        "choices": list(one.choices),
        "answers": letters if one.lettered else list(one.choices),
        "gold": one.answer,
        "subject": one.subject,
    }


def _dataset(documents: Sequence[dict[str, Any]], **_: Any) -> dict[str, Any]:
    """What lm-eval would have downloaded."""
    from datasets import Dataset

    return {"test": Dataset.from_list(list(documents))}
