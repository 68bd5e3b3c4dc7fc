"""tokenizer.json with the special tokens that the configs ask for."""

from __future__ import annotations

import json

import pytest
from text_models import byte_fallback, byte_level

from bestiary.core.errors import ConfigError, DataError, MissingInputError
from bestiary.core.text.generation_config import end_token_ids, load_generation_config
from bestiary.core.text.tokenizer import Tokenizer


@pytest.fixture
def directory(tmp_path):
    byte_level().backend.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def load(directory, **config):
    (directory / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<bos>", "eos_token": "<end>", **config}))
    return Tokenizer.load(directory)


def test_round_trip(directory):
    tokenizer = load(directory)
    ids = tokenizer.encode("hello wörld")
    assert ids[0] == tokenizer.bos_token_id and tokenizer.decode(ids) == "hello wörld"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<bos>hello wörld"
    assert tokenizer.encode("hello wörld", add_special_tokens=False) == ids[1:]
    assert tokenizer.vocab_size == 256 + 8 + 2
    assert tokenizer.token_text(ids[1]) == "hello" and tokenizer.token_text(10**6) is None


@pytest.mark.parametrize(
    ("bos", "eos", "expected"),
    [
        (None, None, ["<bos>", "a"]),
        (True, None, ["<bos>", "a"]),
        (False, None, ["a"]),
        (True, True, ["<bos>", "a", "<end>"]),
        (False, True, ["a", "<end>"]),
    ],
)
def test_the_config_stands_above_the_post_processor(directory, bos, eos, expected):
    tokenizer = load(directory, add_bos_token=bos, add_eos_token=eos)
    assert [tokenizer.token_text(token) for token in tokenizer.encode("a")] == expected


def test_a_begin_token_in_the_text_itself_stays(directory):
    tokenizer = load(directory, add_bos_token=False)
    assert [tokenizer.token_text(token) for token in tokenizer.encode("<bos>a")] == ["<bos>", "a"]


def test_a_begin_token_without_a_post_processor():
    tokenizer = byte_fallback()
    assert tokenizer.encode("a")[0] != tokenizer.bos_token_id
    again = Tokenizer(tokenizer.backend, {"bos_token": "<s>", "add_bos_token": True})
    assert again.encode("a")[0] == again.bos_token_id == 1


def test_no_tokenizer_is_said(tmp_path):
    with pytest.raises(MissingInputError, match=r"tokenizer\.json: the model has no tokenizer"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": 3}', "<html>"])
def test_a_damaged_tokenizer_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(DataError, match=r"tokenizer\.json: not a tokenizer"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "[" * 100000], ids=["empty", "open", "list", "number", "deep"])
def test_a_damaged_config_is_refused(directory, content):
    (directory / "tokenizer_config.json").write_text(content)
    with pytest.raises(DataError, match=r"tokenizer_config\.json: is "):
        Tokenizer.load(directory)


def test_end_tokens_come_from_the_model_and_the_tokenizer(tmp_path):
    assert end_token_ids({"eos_token_id": 5}, 7, 10) == {5, 7}
    assert end_token_ids({"eos_token_id": [5, 6]}, None, 10) == {5, 6}
    assert end_token_ids({}, None, 10) == set()
    (tmp_path / "config.json").write_text('{"eos_token_id": 4}')
    assert load_generation_config(tmp_path)["eos_token_id"] == 4
    (tmp_path / "bestiary.json").write_text('{"config": {"eos_token_id": 3}}')
    assert load_generation_config(tmp_path)["eos_token_id"] == 3
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 2], "top_p": 0.5}')
    assert load_generation_config(tmp_path) == {"eos_token_id": [1, 2], "top_p": 0.5}


@pytest.mark.parametrize("bad", [-1, 10, "2", True, [1, 10], 1.0])
def test_end_tokens_outside_the_vocabulary_are_refused(bad):
    with pytest.raises(ConfigError, match=r"generation_config\.json, eos_token_id"):
        end_token_ids({"eos_token_id": bad}, None, 10)
