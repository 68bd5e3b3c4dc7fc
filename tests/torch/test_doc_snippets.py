"""Every Python block of the documentation runs on a tiny model, or at least compiles; its info string says which."""

from __future__ import annotations

import inspect
import json
import os
import sys
from pathlib import Path
from typing import Any

import documents
import pytest
from text_models import byte_level
from tiny import make_hf

from bestiary import LLM
from bestiary.converters.convert import convert
from bestiary.core.engine.build import build
from bestiary.core.engine.options import BuildOptions
from bestiary.core.plugins import PluginHost

TEMPLATE = "{% for m in messages %}<bos>{{ m.content }}{% endfor %}{% if add_generation_prompt %}:{% endif %}"


def python_blocks(page: Path) -> list[documents.Block]:
    return [block for block in documents.blocks(page) if block.info.split()[:1] == ["python"]]


GUIDES = [page for page in documents.guides() if python_blocks(page)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages call smollm2.hf, smollm2 and smollm2.engine: a tiny random Llama as a directory of each kind."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer, source = byte_level(), folder / "smollm2.hf"
    make_hf(source, vocab_size=tokenizer.vocab_size + 6, num_hidden_layers=2)
    tokenizer.backend.save(str(source / "tokenizer.json"))
    settings = {"bos_token": "<bos>", "eos_token": "<end>"}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    (source / "chat_template.jinja").write_text(TEMPLATE)
    host = PluginHost.load()
    convert(source, folder / "smollm2", host=host)
    options = BuildOptions(device="cpu", max_batch_size=4, max_num_tokens=64)
    (folder / "smollm2.gguf").symlink_to("smollm2")  # what the README calls what make demo leaves
    build(folder / "smollm2", folder / "smollm2.engine", host=host, options=options)
    return folder


@pytest.mark.parametrize("page", documents.guides(), ids=documents.name)
def test_blocks_say_what_becomes_of_them(page: Path) -> None:
    for block in python_blocks(page):
        mark = block.info.split()[1:]
        known = mark in (["run"], ["norun"]) or (len(mark) == 1 and mark[0].startswith("file="))
        assert known, f"{documents.name(page)}:{block.line}: say python run, python norun or python file=NAME.py"


@pytest.mark.parametrize("page", GUIDES, ids=documents.name)
def test_blocks_compile(page: Path) -> None:
    for block in python_blocks(page):
        compiled(block, page)


@pytest.mark.parametrize("page", GUIDES, ids=documents.name)
def test_blocks_run(
    page: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(models)
    monkeypatch.setenv("BESTIARY_HOME", str(tmp_path / "home"))
    monkeypatch.syspath_prepend(tmp_path)
    # What a page runs in a process of its own finds what the page wrote, too.
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    namespace: dict[str, Any] = {"__name__": "snippet"}
    before = set(sys.modules)
    try:
        for block in python_blocks(page):
            mark = block.info.split()[1]
            if mark.startswith("file="):
                (tmp_path / mark.removeprefix("file=")).write_text(block.text, encoding="utf-8")
            elif mark == "run":
                exec(compiled(block, page), namespace)
    finally:
        written = {path.stem for path in tmp_path.glob("*.py")}
        for module in (set(sys.modules) - before) & written:
            del sys.modules[module]


def test_the_table_of_arguments_is_the_signature() -> None:
    documented = [(row[0], row[1]) for row in documents.rows(documents.ROOT / "docs" / "api.md", "LLM")]
    parameters = list(inspect.signature(LLM).parameters.values())[1:]
    assert documented == [(one.name, repr(one.default).replace("'", '"')) for one in parameters]


def compiled(block: documents.Block, page: Path) -> Any:
    """The block as code whose tracebacks name the page and its line."""
    return compile("\n" * (block.line - 1) + block.text, documents.name(page), "exec", dont_inherit=True)
