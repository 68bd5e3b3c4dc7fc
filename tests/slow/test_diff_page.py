"""The page of ``bestiary diff`` in a browser: every plot is drawn, nothing is covered, and no script fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import hidden, opened, too_wide
from tiny import make_engine

from bestiary.core.cli.main import invoke
from bestiary.core.plugins import PluginHost

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("words", "status", "infinite"),
    [
        ([], 0, False),
        (["-p", "planted", "--kernel", "rms_norm=wrong_not_a_number"], 70, True),
        (["-p", "planted", "--kernel", "rms_norm=wrong_raising", "--kv-dtype", "int8", "--seed", "1"], 70, False),
    ],
    ids=["alike", "not a number", "raises, and a cache of few bits"],
)
def test_every_plot_is_drawn(
    words: list[str], status: int, infinite: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BESTIARY_HOME", str(tmp_path / "home"))
    make_engine(tmp_path, PluginHost.load())
    page = tmp_path / "page.html"
    line = [
        *words[:2],
        "diff",
        str(tmp_path / "engine"),
        "--against",
        str(tmp_path / "hf"),
        *words[2:],
        "--html",
        str(page),
    ]
    assert invoke(line) == status
    drawn, console = opened(page, tmp_path)
    assert drawn.count('class="main-svg"') >= 3
    assert console == [] and hidden(page, tmp_path) == []
    assert (">∞</" in drawn) is infinite
    assert too_wide(page, tmp_path) == []
