"""Local questions: what is read, and the sentence that a bad line gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bestiary import DataError, MissingInputError, UsageError
from bestiary_eval.files import read_questions
from bestiary_eval.tasks import from_questions, split

DATA = Path(__file__).parent / "data" / "general_knowledge.jsonl"


def write(tmp_path: Path, name: str, text: str) -> Path:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path / name


def test_the_sample_is_well_spread_and_whole() -> None:
    questions = read_questions(DATA)
    assert len(questions) == len({one.text for one in questions}) == 50
    assert all(len(set(one.choices)) == 4 and one.lettered for one in questions)
    counts = [sum(one.answer == index for one in questions) for index in range(4)]
    assert min(counts) >= 12
    assert len({one.subject for one in questions}) == 8


def test_csv_as_mmlu_has_it(tmp_path: Path) -> None:
    text = '"Which, of these?\nSay",yes,no,"a ""b""",never,C\n\nSecond,1,2,3,4,a\n'
    first, second = read_questions(write(tmp_path, "t.csv", text))
    assert first == ("Which, of these?\nSay", ("yes", "no", 'a "b"', "never"), 2, "", True)
    assert (second.text, second.answer) == ("Second", 0)
    headed = read_questions(write(tmp_path, "h.csv", "question,A,B,C,D,answer\n" + text))
    assert headed == [first, second]


@pytest.mark.parametrize(
    ("line", "answer", "lettered"),
    [
        ({"question": "q", "choices": ["a", "b"], "answer": 1}, 1, True),
        ({"question": "q", "choices": ["a", "b", "c"], "answer": "C", "subject": "high_school"}, 2, True),
        ({"question": "q", "choices": ["a", "b"], "answer": "1"}, 1, True),
        ({"ctx": "q", "endings": ["a", "b", "c", "d"], "label": "3"}, 3, False),
        ({"context": "q", "choices": ["a", "b"], "gold": 0}, 0, False),
        ({"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "label": "B"}, 1, False),
        ({"question": "q", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "gold": "1"}, 0, False),
        ({"question": "q", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"}, 1, False),
        ({"question": "q", "choices": {"text": ["a", "b"], "label": [1, 2]}, "answer": 2}, 1, True),
        ({"question": "q", "choices": {"text": ["a", "b", "c"], "label": ["C", "B", "A"]}, "answerKey": "A"}, 2, False),
        ({"question": "q", "choices": {"text": ["a", "b"]}, "gold": 1}, 1, False),
    ],
)
def test_jsonl(tmp_path: Path, line: dict[str, object], answer: int, lettered: bool) -> None:
    (one,) = read_questions(write(tmp_path, "t.jsonl", json.dumps(line) + "\n"))
    assert (one.text, one.answer, one.lettered) == ("q", answer, lettered)
    assert one.subject in ("", "high school")


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("t.csv", "q,1,2,3,4,A\nq,1,2,3,4\n", r"t\.csv, line 2: not a question; found 5 columns"),
        ("t.csv", '"a\nb",1,2,3,4,A\nq,1,2,3,4,E\n', r"t\.csv, line 3: the answer is none of the choices; found 'E'"),
        ("t.csv", '"never closed,1,2\n', r"t\.csv, line 1: not CSV"),
        ("t.csv", "", r"t\.csv: holds no questions"),
        ("t.jsonl", '{"question": "q", "choices": ["a", "b"], "answer": 0}\n{', r"t\.jsonl, line 2: not a JSON object"),
        ("t.jsonl", "[1]", r"line 1: not a JSON object"),
        ("t.jsonl", '{"choices": ["a", "b"], "answer": 0}', r"line 1: has no context or ctx or question; found choices"),
        ("t.jsonl", '{"question": "q", "answer": 0}', r"line 1: has no choices or endings"),
        ("t.jsonl", '{"question": "q", "choices": ["a", "b"]}', r"line 1: has no gold or label or answerKey"),
        ("t.jsonl", '{"question": "q", "choices": ["a"], "answer": 0}', r"line 1: not that many choices"),
        ("t.jsonl", '{"question": "q", "choices": ["a", 2], "answer": 0}', r"line 1: the choices are no list of texts"),
        ("t.jsonl", '{"question": "q", "choices": ["a", " "], "answer": 0}', r"line 1: not that many choices, or an empty"),
        ("t.jsonl", '{"question": "q", "choices": ["a", "b"], "answer": 2}', r"the answer is none of the choices; found 2"),
        ("t.jsonl", '{"question": "q", "choices": ["a", "b"], "answer": true}', r"the answer is none of the choices"),
        ("t.jsonl", '{"question": "q", "choices": ["a", "b"], "answer": "²"}', r"the answer is none of the choices; found '²'"),
        (
            "t.jsonl",
            '{"question": "q", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "0"}',
            r"line 1: the answer is not the label of one choice; found '0', expected one of 1, 2",
        ),
        (
            "t.jsonl",
            '{"question": "q", "choices": {"text": ["a", "b"], "label": ["A"]}, "answerKey": "A"}',
            r"line 1: not one label for each choice",
        ),
        ("t.jsonl", '{"question": 1, "choices": ["a", "b"], "answer": 0}', r"line 1: the question or subject is no text"),
        ("t.jsonl", '{"question": " ", "choices": ["a", "b"], "answer": 0}', r"line 1: the question is empty"),
        (
            "t.jsonl",
            '{"question": "q", "choices": ["a", "b"], "answer": 0}\n{"ctx": "q", "choices": ["a", "b"], "gold": 0}',
            r"line 2: of another form than the lines before",
        ),
    ],
)  # fmt: skip
def test_a_bad_line_is_one_sentence(tmp_path: Path, name: str, text: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence) as caught:
        read_questions(write(tmp_path, name, text))
    assert caught.value.code == "E-EVAL-FILE"


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="no such file of questions"):
        read_questions(tmp_path / "none.csv")
    (tmp_path / "bad.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        read_questions(tmp_path / "bad.jsonl")


def test_tasks_are_split_once_each() -> None:
    assert split(["a,b", " b ,c.csv"]) == ["a", "b", "c.csv"]
    with pytest.raises(UsageError, match="names no task"):
        split([" , "])


def test_the_prompt_is_mmlus() -> None:
    config = from_questions(Path("x/my file.jsonl"), read_questions(DATA))
    assert config["task"] == "my_file"
    (document,) = config["custom_dataset"](version=1.0)["test"].select([0])
    assert document["prompt"] == (
        "Which planet of the solar system is the closest to the Sun?\nA. Venus\nB. Mercury\nC. Mars\nD. Earth\nAnswer:"
    )
    assert (document["answers"], document["gold"]) == (["A", "B", "C", "D"], 1)
