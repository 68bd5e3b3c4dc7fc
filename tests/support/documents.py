"""The project's markdown files and what is fenced in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
_SKIPPED = {".venv", "templates", "build", "dist", "node_modules"}
_FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block: its info string, its text, and the line of the page that the text begins on."""

    info: str
    text: str
    line: int


def pages() -> list[Path]:
    """Every markdown file, in a fixed order."""
    found = [path for path in ROOT.rglob("*.md") if not _hidden(path.relative_to(ROOT).parts)]
    return sorted(found)


def guides() -> list[Path]:
    """The pages whose Python is checked."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def name(path: Path) -> str:
    """A page's name for test ids."""
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path) -> list[Block]:
    """The fenced blocks of a page."""
    text = path.read_text(encoding="utf-8")
    return [Block(m[1].strip(), m[2], text.count("\n", 0, m.start()) + 2) for m in _FENCE.finditer(text)]


def prose(path: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", path.read_text(encoding="utf-8"))


def rows(path: Path, heading: str, level: int = 2) -> list[list[str]]:
    """The cells of the first table below a heading, without its head, backticks taken off."""
    section = path.read_text(encoding="utf-8").split(f"\n{'#' * level} {heading}\n", 1)[1]
    table = list(_first_table(section.splitlines()))[2:]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in table]


def _first_table(lines: list[str]) -> Iterator[str]:
    started = False
    for line in lines:
        if line.startswith("|"):
            started = True
            yield line
        elif started:
            return


def _hidden(parts: tuple[str, ...]) -> bool:
    return any(part in _SKIPPED or part.startswith(".") for part in parts)
