"""``bestiary-zoo`` installs what this repository has: every model family and every kernel plugin."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ZOO = ROOT / "plugins" / "zoo"


def named(project: Path) -> str:
    return str(tomllib.loads((project / "pyproject.toml").read_text())["project"]["name"])


def test_the_zoo_depends_on_every_family_and_every_kernel_plugin() -> None:
    said = tomllib.loads((ZOO / "pyproject.toml").read_text())["project"]["dependencies"]
    installed = {re.split(r"[<>=~!\[]", one)[0] for one in said}
    families = {named(path.parent) for path in ROOT.glob("models/*/pyproject.toml")}
    sources = ROOT.glob("plugins/*/bestiary_*/**/*.py")
    kernels = {named(ROOT / path.relative_to(ROOT).parents[-3]) for path in sources if _registers(path)}
    assert families | kernels <= installed
    for page in (ZOO / "README.md", ROOT / "CONTRIBUTING.md"):
        text = " ".join(page.read_text().split())
        assert "ernel plugin" in text and ("when they exist" in text) == (not kernels), page.name


def _registers(path: Path) -> bool:
    return "def bestiary_register_kernels(" in path.read_text()
