"""The page of ``bestiary trace`` in a browser."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import hidden, opened
from tiny import make_engine

from bestiary.core.cli.main import invoke
from bestiary.core.plugins import PluginHost

pytestmark = pytest.mark.slow


def test_it_draws_without_errors(tmp_path: Path) -> None:
    make_engine(tmp_path, PluginHost.load())
    assert invoke(["trace", str(tmp_path / "engine"), "-n", "3", "--html", str(tmp_path / "trace.html")]) == 0
    drawn, console = opened(tmp_path / "trace.html", tmp_path)
    assert not console and hidden(tmp_path / "trace.html", tmp_path) == []
    assert drawn.count('class="main-svg"') >= 3
    for text in ("time in calls, ms", "GFLOP/s", "flops a byte", "between calls"):
        assert text in drawn
