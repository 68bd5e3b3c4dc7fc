"""Commands that list what there is, those that plugins add, and how a step is reported."""

import io
import json
import sys
from pathlib import Path

import pytest

from bestiary.core.cli.main import invoke
from bestiary.core.cli.report import Lines
from bestiary.core.plugins.kinds import RESERVED_COMMANDS
from bestiary.core.progress import step


@pytest.fixture(autouse=True)
def _home(monkeypatch, tmp_path):
    monkeypatch.setenv("BESTIARY_HOME", str(tmp_path / "home"))


def test_plugins_lists_what_is_installed(capsys):
    assert invoke(["plugins", "--json"]) == 0
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)["plugins"]}
    assert found["bestiary"]["state"] == "loaded"
    assert invoke(["plugins"]) == 0
    assert "distribution" in capsys.readouterr().out


def test_kernels_can_be_listed_for_one_op(capsys):
    assert invoke(["kernels", "rms_norm", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["kernels"]
    assert {one["op"] for one in found} == {"rms_norm"} and all(one["unavailable"] is None for one in found)


def test_cache_is_listed_and_freed(tmp_path, capsys):
    folder = tmp_path / "home" / "engines" / "m-123"
    folder.mkdir(parents=True)
    (folder / "file").write_text("x" * 10)
    assert invoke(["cache", "ls", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["entries"]
    assert (entry["name"], entry["size"]) == ("m-123", 10)
    assert invoke(["cache", "rm", "m-1"]) == 0
    assert not folder.exists() and "removed engine m-123" in capsys.readouterr().out


PLUGIN = """
from bestiary import Command, hookimpl

@hookimpl
def bestiary_register_commands(register):
    register(Command(name="frob", help="Frobnicate things.", app="frob_app:app"))
    register(Command(name="func", help="A function.", app="frob_app:function"))
"""
APP = """
import typer

app = typer.Typer()

@app.command()
def frob(what: str) -> None:
    print("frobbed", what)

def function(count: int = 1) -> None:
    print("called", count)
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    (tmp_path / "frob_plugin.py").write_text(PLUGIN)
    (tmp_path / "frob_app.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "frob_plugin"
    for name in ("frob_plugin", "frob_app"):
        sys.modules.pop(name, None)


def test_a_plugins_command_is_in_the_help_and_imported_when_called(plugin, capsys):
    assert invoke(["-p", plugin, "--help"]) == 0
    assert "Frobnicate things." in capsys.readouterr().out
    assert "frob_plugin" in sys.modules and "frob_app" not in sys.modules
    assert invoke(["-p", plugin, "frob", "it"]) == 0
    assert invoke(["-p", plugin, "func", "--count", "2"]) == 0
    assert capsys.readouterr().out == "frobbed it\ncalled 2\n"


def test_a_plugins_command_that_cannot_be_imported_is_one_sentence(plugin, capsys):
    Path("frob_app.py").write_text("import no_such_module_here")
    assert invoke(["-p", plugin, "frob", "it"]) == 69
    assert "command frob (frob_plugin" in capsys.readouterr().err


def test_the_words_that_plugins_cannot_take_are_the_built_in_commands():
    from bestiary.core.cli.main import app

    names = {one.name for one in app.registered_commands} | {one.name for one in app.registered_groups}
    assert names == RESERVED_COMMANDS


def test_without_a_terminal_a_step_is_one_line():
    out = io.StringIO()
    with step(Lines(out), "convert", 10, "B") as note:
        note.text = "272 tensors"
    name, _, rest = out.getvalue().partition(" ")
    assert name == "convert" and rest.rstrip().endswith("272 tensors") and out.getvalue().count("\n") == 1
