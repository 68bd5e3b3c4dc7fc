"""docs/plugins.md against the code."""

import inspect
from pathlib import Path

import pytest

from bestiary import hookspecs

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "plugins.md").read_text()


@pytest.mark.parametrize("hook", hookspecs.__all__)
def test_each_hook_is_documented_with_its_signature(hook):
    signature = str(inspect.signature(getattr(hookspecs, hook))).replace("'", "")
    assert f"`{hook}{signature}`" in PAGE, f"docs/plugins.md lacks `{hook}{signature}`"


def test_no_hook_is_documented_that_does_not_exist():
    named = {word.split("(")[0] for word in PAGE.replace("`", " ").split() if word.startswith("bestiary_register_")}
    assert named == set(hookspecs.__all__)
