"""Every error says what to do: by its code, or where it is raised."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from bestiary.core.errors import DataError, RequestError
from bestiary.core.hints import HINTS
from bestiary.core.sampling_params import SamplingParams

ROOT = Path(__file__).resolve().parents[2]
ROOMS = (
    "core",
    "layers",
    "converters",
    *(path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("*/*/*/py.typed")),
)
CODE = re.compile(r"E(-[A-Z]+){2,}")
# Where codes stand for no error of ours: exceptions of other libraries in --json, and the table itself.
NOT_RAISED = ("core/cli/failures.py", "core/hints.py")


def always(call: ast.Call) -> bool:
    """Whether a call gives a hint whatever happens."""
    hints = [keyword.value for keyword in call.keywords if keyword.arg == "hint"]
    return bool(hints) and not any(isinstance(one, ast.Constant) and one.value is None for one in ast.walk(hints[0]))


def codes(source: str) -> Iterator[tuple[str, int, bool]]:
    """Each error code in a module's text, its line, and whether a hint stands beside it."""
    tree = ast.parse(source)
    hinted = {id(one) for call in ast.walk(tree) if isinstance(call, ast.Call) and always(call) for one in call.args}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and CODE.fullmatch(node.value):
            yield node.value, node.lineno, id(node) in hinted


def used() -> Iterator[tuple[str, str, bool]]:
    """Each code, where it stands, and whether a hint stands beside it."""
    for path in (path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))):
        name = path.relative_to(ROOT).as_posix()
        if name not in NOT_RAISED:
            yield from ((code, f"{name}:{line}", hinted) for code, line, hinted in codes(path.read_text()))


def test_every_code_has_a_hint() -> None:
    found = [f"{place} {code}" for code, place, hinted in used() if not hinted and code not in HINTS]
    assert not found, "raise these with hint=…, or give their codes a row in core/hints.py"


def test_a_code_made_of_a_fields_name_has_one_too() -> None:
    with pytest.raises(RequestError) as refused:
        SamplingParams(top_p=2)
    assert (refused.value.code, refused.value.hint) == ("E-REQ-TOP-P", "correct top_p, or leave it out")


def test_every_hint_has_a_code() -> None:
    unused = sorted(HINTS.keys() - {code for code, _, _ in used()})
    assert not unused, "nothing raises these"


def test_a_hint_of_ones_own_goes_before_that_of_the_code() -> None:
    assert DataError("E-CKPT-DIGEST", "a", "b").hint == HINTS["E-CKPT-DIGEST"]
    assert DataError("E-CKPT-DIGEST", "a", "b", hint="c").hint == "c"


def test_the_check_sees_what_it_must() -> None:
    source = 'raise A("E-A-B", x)\nraise A("E-C-D", x, hint="do")\nraise A("E-E-F", x, hint=y if z else None)\n'
    assert [hinted for _, _, hinted in codes(source)] == [False, True, False]
