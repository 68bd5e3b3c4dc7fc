"""No command ends at an unknown architecture that transformers knows: the fallback runs it."""

from __future__ import annotations

import json

import pytest
from unported_models import save

from bestiary.core.cli.main import invoke


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_run_and_diff(name, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("BESTIARY_HOME", str(tmp_path / "home"))
    save(tmp_path, name)
    (tmp_path / "hf" / "tokenizer.json").write_text(json.dumps(WORDS))
    assert invoke(["run", str(tmp_path / "hf"), "a b", "--device", "cpu", "-n", "3"]) == 0
    capsys.readouterr()
    assert invoke(["diff", str(tmp_path / "hf"), "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [place["name"] for place in found["places"]] == ["logits"]
    assert found["verdict"]["blame"] == "nothing"


WORDS = {
    "version": "1.0",
    "added_tokens": [],
    "pre_tokenizer": {"type": "Whitespace"},
    "model": {"type": "WordLevel", "vocab": {"a": 3, "b": 4, "?": 5}, "unk_token": "?"},
}
