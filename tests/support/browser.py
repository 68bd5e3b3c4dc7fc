"""A headless browser for pages that bestiary writes."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=8000", "--window-size=1200,3000")

# Texts of plots that reach beyond their plot, or lie under its buttons, and legends on legends; written into the page when all is drawn.
_LOOK = """
<script>addEventListener("load", () => setTimeout(() => {
  const found = [];
  for (const plot of document.querySelectorAll(".js-plotly-plot")) {
    const whole = plot.getBoundingClientRect(), bar = plot.querySelector(".modebar").getBoundingClientRect();
    for (const text of plot.querySelectorAll("svg text")) {
      const box = text.getBoundingClientRect();
      if (!text.textContent.trim() || !box.width) continue;
      const cut = box.left < whole.left - 1 || box.right > whole.right + 1 || box.top < whole.top - 1 || box.bottom > whole.bottom + 1;
      const under = box.right > bar.left && box.left < bar.right && box.bottom > bar.top && box.top < bar.bottom;
      if (cut || under) found.push(`${plot.id} ${cut ? "cut" : "under"}: ${text.textContent}`);
    }
    const names = [...plot.querySelectorAll('text[class^="legend"], .gtitle, .annotation-text')].map(
      (text) => [text.textContent, text.getBoundingClientRect()]).filter(([, box]) => box.width);
    for (const [one, a] of names) for (const [other, b] of names)
      if (a !== b && a.right > b.left + 1 && a.left < b.right - 1 && a.bottom > b.top + 3 && a.top < b.bottom - 3)
        found.push(`${plot.id} on another: ${one} and ${other}`);
  }
  const told = document.createElement("pre");
  told.id = "looked-for";
  told.textContent = found.join("\\n");
  document.body.append(told);
}, 500));</script>
"""


# Tables that do not fit in a window of 1200 pixels, and the page if it does not; written into it, too.
_MEASURE = """
<script>addEventListener("load", () => {
  const wide = (one) => one.scrollWidth > one.clientWidth;
  const found = [...document.querySelectorAll(".scroll")].filter(wide).map((one) => one.querySelector("th").textContent || "table");
  if (wide(document.documentElement)) found.push("page");
  const told = document.createElement("pre");
  told.id = "looked-for";
  told.textContent = found.join("\\n");
  document.body.append(told);
});</script>
"""


def too_wide(page: Path, scratch: Path) -> list[str]:
    """The first headings of a page's tables that must be scrolled sideways, and "page" if the page must be."""
    return _looked(page, scratch, _MEASURE)


def hidden(page: Path, scratch: Path) -> list[str]:
    """Texts of a page's plots that are cut, that the plot's buttons cover, or that lie on one another."""
    return _looked(page, scratch, _LOOK)


def _looked(page: Path, scratch: Path, script: str) -> list[str]:
    looked = scratch / f"looked-{page.name}"
    before, end, after = page.read_text().rpartition("</body>")  # plotly's script may have the same text
    looked.write_text(f"{before}{script}{end}{after}")
    markup, _ = opened(looked, scratch)
    found = re.search(r'<pre id="looked-for">([^<]*)</pre>', markup)
    assert found is not None, "the page has no body's end, or its script failed"
    return found[1].splitlines()


def opened(page: Path, scratch: Path) -> tuple[str, list[str]]:
    """The page's markup after its scripts ran, and what these wrote to the console. The test is skipped without a browser."""
    program = next((found for name in _NAMES if (found := shutil.which(name)) is not None), None)
    if program is None:
        pytest.skip("no Chromium here")
    options = [*_OPTIONS, f"--user-data-dir={scratch / 'profile'}", "--enable-logging=stderr", "--v=0", "--dump-dom"]
    done = subprocess.run([program, *options, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, re.findall(r"CONSOLE[^\n]*", done.stderr)
