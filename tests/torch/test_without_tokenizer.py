"""A model without tokenizer files: it runs on token ids, says so before any work where it can't, and takes another's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import text_models
from tiny import make_hf

from bestiary import LLM, MissingInputError, SamplingParams
from bestiary.converters.convert import convert
from bestiary.core.cli.main import invoke
from bestiary.core.engine.build import build
from bestiary.core.engine.options import BuildOptions
from bestiary.core.plugins import PluginHost
from bestiary.core.prepare import prepare

GREEDY = ["-t", "0", "-n", "4", "--ignore-eos"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ``hf`` and its ``engine``, and the directory ``words`` of a tokenizer."""
    place, host = tmp_path_factory.mktemp("made"), PluginHost.load()
    make_hf(place / "hf", vocab_size=text_models.byte_level().vocab_size)
    convert(place / "hf", place / "ckpt", host=host)
    options = BuildOptions(device="cpu", max_batch_size=2, max_num_tokens=32)
    build(place / "ckpt", place / "engine", host=host, options=options)
    (place / "words").mkdir()
    text_models.byte_level().backend.save(str(place / "words" / "tokenizer.json"))
    (place / "words" / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}!")
    return place


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BESTIARY_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_generate_answers_token_ids_with_token_ids(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tmp_path / "ids.jsonl"
    lines.write_text('{"prompt_token_ids": [1, 2, 3]}\n')
    line = ["generate", str(made / "engine"), "--prompts", str(lines), *GREEDY]
    assert invoke([*line, "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert len(answer["token_ids"]) == 4 and answer["text"] == ""
    assert invoke(line) == 0
    assert capsys.readouterr().out.split() == [str(token) for token in answer["token_ids"]]


def test_text_is_refused_without_a_tokenizer_and_taken_with_one(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["generate", str(made / "engine"), "hello", *GREEDY]
    assert invoke(line) == 2
    assert "text needs a tokenizer and there is none" in capsys.readouterr().err
    assert invoke([*line, "--tokenizer", str(made / "words")]) == 0
    assert capsys.readouterr().out.startswith("hello")


def test_run_says_so_before_it_converts(made: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["run", str(made / "hf"), "hello"]) == 66
    assert "the model has no tokenizer" in capsys.readouterr().err and not home.exists()
    assert invoke(["run", str(made / "hf"), "hello", "--tokenizer", "nowhere"]) == 66
    assert "tokenizer nowhere: no such directory" in capsys.readouterr().err and not home.exists()


def test_no_weights_are_converted_where_a_tokenizer_is_needed(made: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"^hf/tokenizer\.json: the model has no tokenizer"):
        convert(made / "hf", tmp_path / "ckpt", host=PluginHost.load(), needs_tokenizer=True)
    assert not list(tmp_path.iterdir())


def test_a_cached_checkpoint_without_a_tokenizer_is_not_built(
    made: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As a GGUF file: what it holds is seen by its reader alone.
    monkeypatch.setattr("bestiary.core.prepare._check_tokenizer", lambda path: None)
    options = {"host": PluginHost.load(), "options": BuildOptions(device="cpu", max_batch_size=2)}
    prepare(made / "hf", **options)
    other = {**options, "options": BuildOptions(device="cpu", max_batch_size=3)}
    with pytest.raises(MissingInputError, match="the model has no tokenizer"):
        prepare(made / "hf", needs_tokenizer=True, **other)
    assert len(list(home.glob("engines/*/engine.json"))) == 1


def test_run_and_chat_take_the_tokenizer_and_its_chat_template(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = ["--tokenizer", str(made / "words"), "--system", "be kind", *GREEDY, "--json"]
    assert invoke(["run", str(made / "engine"), "hello", *named]) == 0
    answer = json.loads(capsys.readouterr().out)
    with LLM(made / "engine", tokenizer=made / "words", kv_cache_memory=2**22) as llm:
        prompt = llm.encode("be kindhello!", add_special_tokens=False)
        params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
        (expected,) = llm.generate(prompt, params, use_tqdm=False)
    assert answer["token_ids"] == expected.outputs[0].token_ids
    assert invoke(["chat", str(made / "engine")]) == 66
    assert "the model has no tokenizer" in capsys.readouterr().err


def test_a_tokenizer_that_is_not_there_is_named(made: Path) -> None:
    with pytest.raises(MissingInputError, match=r"^tokenizer nowhere: no such directory"):
        LLM(made / "engine", tokenizer="nowhere")
    with pytest.raises(MissingInputError, match=r"^ckpt/tokenizer\.json: the model has no tokenizer"):
        LLM(made / "engine", tokenizer=made / "ckpt")
