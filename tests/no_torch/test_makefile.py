"""What the Makefile's lists of files hold, which no shared file names one by one."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_long_form_runs_every_kit_that_there_is() -> None:
    kit = re.compile(r"^class Test\w*\(.*Conformance\):", re.MULTILINE)
    kits = [path.relative_to(ROOT) for path in ROOT.glob("*/*/tests/test_*.py") if kit.search(path.read_text())]
    made = subprocess.run(["make", "-n", "conformance"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {path.parts[1] for path in kits} >= {"llama", "mistral", "qwen", "transformers"}
    assert [path for path in kits if str(path) not in made.split()] == []
