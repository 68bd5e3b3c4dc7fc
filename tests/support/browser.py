"""A headless browser for pages that bestiary writes."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=8000", "--window-size=1200,3000")


def opened(page: Path, scratch: Path) -> tuple[str, list[str]]:
    """The page's markup after its scripts ran, and what these wrote to the console. The test is skipped without a browser."""
    program = next((found for name in _NAMES if (found := shutil.which(name)) is not None), None)
    if program is None:
        pytest.skip("no Chromium here")
    options = [*_OPTIONS, f"--user-data-dir={scratch / 'profile'}", "--enable-logging=stderr", "--v=0", "--dump-dom"]
    done = subprocess.run([program, *options, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, re.findall(r"CONSOLE[^\n]*", done.stderr)
