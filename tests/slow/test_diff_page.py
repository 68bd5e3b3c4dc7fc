"""The page of ``bestiary diff`` in a browser: every plot is drawn, and no script fails."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from tiny import make_hf

from bestiary.core.cli.main import invoke

pytestmark = pytest.mark.slow
BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_every_plot_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BESTIARY_HOME", str(tmp_path / "home"))
    make_hf(tmp_path / "hf")
    page = tmp_path / "page.html"
    assert invoke(["diff", str(tmp_path / "hf"), "--device", "cpu", "--html", str(page)]) == 0
    options = [
        "--headless",
        "--no-sandbox",
        "--virtual-time-budget=8000",
        "--enable-logging=stderr",
        "--v=0",
        "--dump-dom",
    ]
    ran = subprocess.run(
        [str(BROWSER), *options, page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert ran.stdout.count('class="main-svg"') >= 3
    assert "CONSOLE" not in ran.stderr and "Uncaught" not in ran.stderr
