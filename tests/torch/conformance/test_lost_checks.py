"""Checks of a class that are lost from inside or outside: plain pytest and ``bestiary check`` both say so.

Each takes a second: one of each kind stands for the others in the fast suite.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent, indent

import pytest

from bestiary.core.conformance.model_run import Check
from bestiary.core.conformance.model_session import Recorder, run_pytest
from bestiary.core.progress import Silent


def one_is_fast(ways: Mapping[str, object]) -> list[object]:
    """All of them as parameters; those after the first are slow."""
    first, *rest = ways
    return [first, *(pytest.param(way, marks=pytest.mark.slow) for way in rest)]


def outcomes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> list[Check]:
    """What becomes of a class in a module of its own, of which nothing but cheap checks runs."""
    from bestiary.core.conformance.model_run import _outcomes

    monkeypatch.syspath_prepend(tmp_path)
    name = f"conformance_{len(list(tmp_path.iterdir()))}_{abs(hash(source))}"
    (tmp_path / f"{name}.py").write_text(source)
    recorder = Recorder(frozenset(["tiny"]), Silent())
    run_pytest(f"{name}:Family", ["broken_families"], {}, False, recorder)
    module = __import__(name)
    return list(_outcomes(module.Family, ["tiny"], recorder, False))


CLASS = """
import pytest
from broken_families import TINY, reference as of_transformers
from bestiary.testing import ModelConformance

CHEAP = ("test_unknown_keys", "test_impossible_keys")
WAIVED = [n for n in dir(ModelConformance) if n.startswith("test_") and n not in CHEAP]

class Family(ModelConformance):
    model = "windowed"
    configs = {"tiny": TINY}
    reference = of_transformers
    waived = {name: "not of interest in this test" for name in WAIVED}
"""


@pytest.mark.parametrize(
    ("body", "outcome", "text"),
    [
        ("", "passed", ""),
        (
            "@pytest.fixture(autouse=True)\ndef skip(self):\n    pytest.skip('the weather')",
            "failed",
            "skipped without a waiver: the weather",
        ),
        (
            "@pytest.fixture(autouse=True)\ndef skip(self):\n    pytest.skip('none: trust me')",
            "failed",
            "skipped without a waiver: none: trust me",
        ),
        (
            "@pytest.fixture(autouse=True)\ndef skip(self):\n    pytest.skip('waived: trust me')",
            "failed",
            "skipped without a waiver: waived: trust me",
        ),
        (
            "@pytest.fixture(autouse=True)\ndef skip(self):\n    pytest.xfail('some day')",
            "failed",
            "some day",
        ),
    ],
    ids=["nothing", "skip", "none", "waived", "xfail"],
)
def test_a_skip_from_inside_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, outcome: str, text: str
) -> None:
    checks = outcomes(tmp_path, monkeypatch, CLASS + indent(body, "    "))
    (found,) = [one for one in checks if one.check == "test_unknown_keys"]
    assert found.outcome == outcome and text in found.text
    waived = [one for one in checks if one.check == "test_prefill"]
    if outcome == "passed":
        assert [(one.outcome, one.text) for one in waived] == [("waived", "not of interest in this test")]


# What a fixture of the class may try, and what is said of it.
FIXTURES: Mapping[str, tuple[str, str]] = {
    "findings of its own, by name": (
        """
        @pytest.fixture(name="findings")
        def of_its_own(self):
            return Lenient()
        """,
        "a fixture of its own replaces the kit's 'findings'",
    ),
    "findings around the kit's": (
        """
        @pytest.fixture(name="findings")
        def of_its_own(self, request):
            request.getfixturevalue("case")
            return Lenient()
        """,
        "a fixture of its own replaces the kit's 'findings'",
    ),
    "a case of its own": (
        """
        @pytest.fixture(name="case")
        def of_its_own(self, request):
            return Lenient()
        """,
        "a fixture of its own replaces the kit's 'case'",
    ),
    "lenient findings": (
        """
        @pytest.fixture(autouse=True)
        def lenient(self, findings):
            findings.require = lambda *args: None
        """,
        "attribute 'require' is read-only",
    ),
    "a lenient class of findings": (
        """
        @pytest.fixture(autouse=True)
        def lenient(self, monkeypatch):
            monkeypatch.setattr("bestiary.core.conformance.findings.Findings.require", lambda *args: None)
        """,
        "something replaced bestiary.core.conformance.findings.Findings.require of the kit",
    ),
    "a lenient part of the kit": (
        """
        @pytest.fixture(autouse=True)
        def lenient(self, monkeypatch):
            monkeypatch.setattr("bestiary.core.conformance.model_files._parsed", lambda *args: None)
        """,
        "something replaced bestiary.core.conformance.model_files._parsed of the kit",
    ),
    "a lenient case": (
        """
        @pytest.fixture(autouse=True)
        def lenient(self, case):
            case.expected = None
        """,
        "something replaced case.expected",
    ),
    "another function": (
        """
        @pytest.fixture(autouse=True)
        def another(self, request):
            request.node.obj = lambda **given: None
        """,
        "something replaced the check while it was set up",
    ),
    "no function": (
        """
        @pytest.fixture(autouse=True)
        def nothing(self, request):
            request.node.runtest = lambda: None
        """,
        "something replaced the check while it was set up",
    ),
    "another check in the class": (
        """
        @pytest.fixture(autouse=True)
        def another(self, request):
            type.__setattr__(Family, request.node.originalname, lambda self, case: None)
            request.node.obj = lambda **given: None
        """,
        "something replaced the check while it was set up",
    ),
    "the code of the check": (
        """
        @pytest.fixture(autouse=True)
        def another(self, monkeypatch):
            nothing = (lambda self, case, findings=None: None).__code__
            for check in (ModelConformance.test_unknown_keys, ModelConformance.test_impossible_keys):
                monkeypatch.setattr(check, "__code__", nothing)
        """,
        "it measured nothing",
    ),
}


@pytest.mark.parametrize("way", one_is_fast(FIXTURES))
def test_a_fixture_that_would_lose_a_check_fails_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    body, complaint = FIXTURES[way]
    lenient = "\nclass Lenient:\n    def __getattr__(self, name):\n        return lambda *args: None\n"
    checks = outcomes(tmp_path, monkeypatch, CLASS + indent(dedent(body), "    ") + lenient)
    (found,) = [one for one in checks if one.check == "test_impossible_keys"]
    assert found.outcome == "failed" and complaint in found.text, found


def test_a_waived_check_may_have_a_replacement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "\ndef test_prefill(self, case):\n    assert case.name == 'tiny'\ndef test_decode(self, case):\n    assert False"
    found = {one.check: one for one in outcomes(tmp_path, monkeypatch, CLASS + indent(body, "    "))}
    assert found["test_prefill"].outcome == "waived"
    assert found["test_prefill"].text == "not of interest in this test; the plugin's own check passes"
    assert found["test_decode"].outcome == "failed", "a replacement can fail"


# What a conftest.py may do to the checks of a class, and what pytest says.
OUTSIDE: Mapping[str, tuple[str, pytest.ExitCode, str]] = {
    "nothing": ("", pytest.ExitCode.OK, ""),
    "drops checks": (
        """
        def pytest_collection_modifyitems(items):
            items[:] = [item for item in items if "impossible" not in item.name]
        """,
        pytest.ExitCode.USAGE_ERROR,
        "1 of 23 checks of ModelConformance were dropped after they were collected, by a conftest.py or a plugin of "
        "pytest: test_family.py::TestFamily::test_impossible_keys[tiny]",
    ),
    "deselects checks, which pytest counts": (
        """
        def pytest_collection_modifyitems(config, items):
            config.hook.pytest_deselected(items=[item for item in items if "impossible" in item.name])
            items[:] = [item for item in items if "impossible" not in item.name]
        """,
        pytest.ExitCode.OK,
        "1 deselected",
    ),
    "skips checks": (
        """
        import pytest

        @pytest.fixture(autouse=True)
        def no(request):
            if "impossible" in request.node.name:
                pytest.skip("later")
        """,
        pytest.ExitCode.TESTS_FAILED,
        "skipped without a waiver: later",
    ),
    "marks checks": (
        """
        import pytest

        def pytest_collection_modifyitems(items):
            for item in items:
                if "impossible" in item.name:
                    item.add_marker(pytest.mark.skip(reason="later"))
        """,
        pytest.ExitCode.TESTS_FAILED,
        "skipped without a waiver: later",
    ),
    "expects checks to fail": (
        """
        import pytest

        def pytest_collection_modifyitems(items):
            for item in items:
                if "impossible" in item.name:
                    item.add_marker(pytest.mark.xfail(run=False, reason="some day"))
        """,
        pytest.ExitCode.TESTS_FAILED,
        "skipped without a waiver: [NOTRUN] some day",
    ),
}


@pytest.mark.parametrize("way", one_is_fast(OUTSIDE))
def test_a_conftest_that_loses_a_check_is_seen_by_plain_pytest(
    tmp_path: Path, way: str, capfd: pytest.CaptureFixture[str]
) -> None:
    body, status, said = OUTSIDE[way]
    (tmp_path / "test_family.py").write_text(
        f"{CLASS}\nclass TestFamily(Family):\n    plugins = ('broken_families',)\n"
    )
    (tmp_path / "conftest.py").write_text(dedent(body))
    options = ["-p", "no:cacheprovider", "-c", os.devnull, "--import-mode=importlib", "--rootdir", str(tmp_path)]
    assert pytest.main([*options, str(tmp_path)]) == status
    out, err = capfd.readouterr()
    assert said in out + err


@pytest.mark.parametrize(
    ("body", "raised"),
    [("os.kill(os.getpid(), signal.SIGTERM)", SystemExit), ("raise KeyboardInterrupt", KeyboardInterrupt)],
    ids=["terminated", "interrupted"],
)
def test_what_ends_a_process_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, raised: type[BaseException]
) -> None:
    ending = f"\n    @pytest.fixture(autouse=True)\n    def ends(self):\n        import os, signal\n        {body}\n"
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    try:
        handler = signal.getsignal(signal.SIGTERM)
        with pytest.raises(raised):
            outcomes(tmp_path, monkeypatch, CLASS + ending)
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_mark_from_outside_fails_the_collection(tmp_path: Path) -> None:
    line = "pytestmark = pytest.mark.skip(reason='all of this file')"
    (tmp_path / "test_marked_family.py").write_text(f"{CLASS}\nclass TestFamily(Family):\n    pass\n\n{line}\n")
    recorder = Recorder(frozenset(["tiny"]), Silent())
    options = ["-p", "no:cacheprovider", "-p", "no:terminal", "-c", os.devnull, str(tmp_path)]
    assert pytest.main(options, plugins=[recorder]) == pytest.ExitCode.INTERRUPTED
    assert "the mark skip would skip a check in silence" in recorder.broken[0]
    assert not recorder.reports
