"""Sequences to calibrate on, from texts and lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from text_models import byte_level

from bestiary.core.errors import BestiaryError, DataError, MissingInputError
from bestiary.core.quant.calibration import sequences_of
from bestiary.core.text.tokenizer import Tokenizer

TEXT = " ".join(f"{number} is a number." for number in range(200))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    byte_level().backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<bos>", "add_bos_token": True}))
    return tmp_path


def written(directory: Path, text: str, name: str = "lines.jsonl") -> Path:
    (directory / name).write_text(text)
    return directory / name


def test_windows_are_spread_over_the_text(directory):
    tokenizer = Tokenizer.load(directory)
    tokens, begin = tokenizer.encode(TEXT, add_special_tokens=False), tokenizer.bos_token_id
    made = sequences_of(written(directory, TEXT, "t.txt"), directory, samples=5, length=20)
    assert [len(one) for one in made] == [20] * 5 and all(one[0] == begin for one in made)
    starts = [
        next(at for at in range(len(tokens)) if tokens[at : at + 19] == one[1:]) for one in made
    ]  # each number makes its window the only one
    for part, start in enumerate(starts):
        assert len(tokens) * part // 5 <= start <= start + 19 <= len(tokens) * (part + 1) // 5


def test_a_seed_chooses_the_windows(directory):
    text = written(directory, TEXT, "t.txt")
    first, again, other = (sequences_of(text, directory, samples=3, length=20, seed=seed) for seed in (0, 0, 1))
    assert first == again != other


def test_a_short_text_gives_fewer_windows(directory):
    tokens = Tokenizer.load(directory).encode(TEXT, add_special_tokens=False)
    made = sequences_of(written(directory, TEXT, "t.txt"), directory, samples=100, length=len(tokens) // 3)
    assert len(made) == 3
    (only,) = sequences_of(written(directory, "Hello", "t.txt"), directory)
    assert only[1:] == Tokenizer.load(directory).encode("Hello", add_special_tokens=False)


def test_lines_are_sequences(directory):
    lines = ['{"text": "Hello there"}', "", '{"prompt": "Good day", "id": 7}', '{"tokens": [5, 6, 7, 8]}']
    made = sequences_of(written(directory, "\n".join(lines)), directory, length=3)
    tokenizer = Tokenizer.load(directory)
    assert made == [tokenizer.encode("Hello there")[:3], tokenizer.encode("Good day")[:3], [5, 6, 7]]


def test_of_many_lines_some_are_taken(directory):
    file = written(directory, "\n".join(f'{{"tokens": [{number}]}}' for number in range(1000)))
    made = [only for (only,) in sequences_of(file, directory, samples=10)]
    assert len(made) == 10 and made == sorted(made) and made[-1] - made[0] > 300
    assert made == [only for (only,) in sequences_of(file, directory, samples=10)]
    assert made != [only for (only,) in sequences_of(file, directory, samples=10, seed=1)]


def test_tokens_need_no_tokenizer(tmp_path):
    assert sequences_of(written(tmp_path, '{"tokens": [1, 2]}'), tmp_path / "none") == [[1, 2]]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("hello", "is not JSON"),
        ("[1, 2]", "found [1, 2]"),
        ('{"words": "Hello"}', "found {'words': 'Hello'}"),
        ('{"text": ""}', "nothing to calibrate on"),
        ('{"text": 5}', "nothing to calibrate on"),
        ('{"tokens": []}', "found []"),
        ('{"tokens": [1, 2.5]}', "found [1, 2.5]"),
        ('{"tokens": [true]}', "found [True]"),
        ('{"tokens": [-1]}', "found [-1]"),
        ('{"tokens": "1 2"}', "found '1 2'"),
    ],
)
def test_a_wrong_line_is_named(directory, line, said):
    with pytest.raises(DataError) as refused:
        sequences_of(written(directory, f'{{"text": "fine"}}\n\n{line}\n'), directory)
    assert refused.value.code == "E-QUANT-TEXT" and refused.value.subject == "lines.jsonl, line 3"
    assert said in str(refused.value)


@pytest.mark.parametrize("name", ["t.txt", "t.jsonl"])
def test_an_empty_file_is_refused(directory, name):
    with pytest.raises(DataError) as refused:
        sequences_of(written(directory, "", name), directory)
    assert (refused.value.code, refused.value.subject) == ("E-QUANT-TEXT", name)


def test_files_that_are_not_there_are_named(tmp_path):
    errors: list[BestiaryError] = []
    for file in (tmp_path / "none.txt", written(tmp_path, "Hello", "t.txt"), written(tmp_path, '{"text": "a"}')):
        with pytest.raises(MissingInputError) as refused:
            sequences_of(file, tmp_path)
        errors.append(refused.value)
    assert errors[0].subject == "none.txt"
    assert all("has no tokenizer" in str(error) for error in errors[1:])
