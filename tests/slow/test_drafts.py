"""The table of what drafts find, in docs/first-plugin.md, against drafts of random models and their own tests."""

import contextlib
import io
import json

import documents
import foreign_models
import pytest
from scratch_venv import Scratch

from bestiary.core.cli.main import invoke

pytestmark = pytest.mark.slow
ROWS = documents.rows(documents.ROOT / "docs" / "first-plugin.md", "What a draft finds", level=3)
WHOLE = [row[0] for row in ROWS if row[2] == "whole"]


def draft(architecture, folder, monkeypatch):
    """Draft a plugin as if none were installed; what ``--json`` says of it."""
    foreign_models.save(architecture, folder / "hf")
    monkeypatch.setenv("BESTIARY_PLUGINS", "")
    monkeypatch.chdir(folder)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert invoke(["new", "model", "drafted", "--from", "hf", "--no-input", "--json"]) == 0
    return json.loads(out.getvalue())


def test_the_table_has_every_model():
    assert [row[0] for row in ROWS] == list(foreign_models.MODELS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_table_says_what_is_placed(row, tmp_path, monkeypatch):
    report = draft(row[0], tmp_path, monkeypatch)
    assert row[1] == f"{report['placed']} of {report['tensors']}"
    if row[2] == "whole":
        assert report["left"] == []


@pytest.mark.parametrize("architecture", WHOLE)
def test_a_whole_draft_passes_its_own_tests(architecture, tmp_path, monkeypatch):
    draft(architecture, tmp_path, monkeypatch)
    scratch = Scratch(tmp_path / "environment", tmp_path)
    # Alone: a plugin that is installed here may serve the same architecture.
    scratch.run(
        "pip install ./bestiary-drafted\nexport BESTIARY_PLUGINS=drafted\ncd bestiary-drafted && pytest -m 'not slow'"
    )


@pytest.mark.parametrize(
    "architecture", [row[0] for row in ROWS if row[2].startswith("nothing is listed, and the tests fail")]
)
def test_what_no_name_tells_is_found_by_the_tests(architecture, tmp_path, monkeypatch):
    assert draft(architecture, tmp_path, monkeypatch)["left"] == []
    scratch = Scratch(tmp_path / "environment", tmp_path)
    scratch.run("pip install ./bestiary-drafted")
    with pytest.raises(AssertionError, match="logits of a prompt: off by"):
        scratch.run("export BESTIARY_PLUGINS=drafted\ncd bestiary-drafted && pytest -k prefill")


def test_layers_without_rotation_are_two_lines(tmp_path, monkeypatch):
    """What the page says of SmolLM3: the draft fails its tests, and passes them with the lines that are written here."""
    report = draft("SmolLM3ForCausalLM", tmp_path, monkeypatch)
    assert any("no_rope_layers" in line for line in report["left"])
    package = tmp_path / "bestiary-drafted" / "bestiary_drafted"
    changes = [
        ("config", "    tie_word", "    no_rope_layers: list[int] | None = None\n    tie_word"),
        (
            "model",
            "            rope=c.rope,",
            "            rope=c.rope if c.no_rope_layers is None or c.no_rope_layers[index] else None,",
        ),
    ]
    scratch = Scratch(tmp_path / "environment", tmp_path)
    tests = (
        "export BESTIARY_PLUGINS=drafted\ncd bestiary-drafted && pytest -m 'not slow' -k 'prefill or decode or greedy'"
    )
    scratch.run("pip install -e ./bestiary-drafted")
    with pytest.raises(AssertionError, match="a greedy token below the reference's best: off by"):
        scratch.run(tests)
    for module, old, new in changes:
        text = (package / f"{module}.py").read_text()
        assert text.count(old) == 1
        (package / f"{module}.py").write_text(text.replace(old, new))
    scratch.run(tests)
