"""D20: model plugins whose layers, heads or caches contradict the tensors are refused, with the arithmetic."""

from __future__ import annotations

import json
import re
from typing import Any

import demo_plugins
import pytest
from scratch import Environment

pytestmark = pytest.mark.slow

SCRIPT = f"""{demo_plugins.ATTEMPT}
attempts = {{name: attempt(name, name, 2) for name in ("honest", "more", "fewer", "heads", "cache", "single")}}
print(json.dumps({{**attempts, "uneven": attempt("uneven", "honest", 3)}}))
"""


@pytest.fixture(scope="module")
def attempts(scratch: Environment) -> Any:
    ran = scratch.python(SCRIPT, plugins="liar")
    assert ran.status == 0, ran
    return ran.json


def test_a_model_that_says_the_truth_is_built(attempts: Any) -> None:
    assert attempts["honest"] == {"code": None}


@pytest.mark.parametrize(
    ("lie", "status", "subject", "found", "expected"),
    [
        ("more", 65, r"layer\.2\..*", "12 tensors, none of that name", r"shape \[16\]"),
        ("fewer", 65, r"layer\.1\..*", r"shape \[8, 16\]", "the tensors of 2 layers"),
        ("heads", 65, r"layer\.0\.k\.weight", r"\[8, 16\]", r"\[16, 16\] from .*hidden_size=16"),
        ("cache", 69, r"model cache \(demo-liar 1.0\), cache layers.0.attention.cache", "2 × 4 = 8", "4 × 4 = 16"),
        ("single", 69, r"model single \(demo-liar 1.0\), cache layers.0.attention.cache", "2 × 4 = 8", "1 × 4 = 4"),
        ("uneven", 69, r"model honest .*, cache layers.0.attention.cache", r"4 = 1 × 3 \+ 1", "a multiple of 3"),
    ],
)
def test_D20_a_contradiction_is_refused(
    attempts: Any, lie: str, status: int, subject: str, found: str, expected: str
) -> None:
    error = attempts[lie]
    assert (error["status"], error["written"]) == (status, False)
    assert re.search(subject, error["subject"]) and re.fullmatch(found, error["found"]), json.dumps(error)
    assert re.match(expected, error["expected"]) and error["hint"]
