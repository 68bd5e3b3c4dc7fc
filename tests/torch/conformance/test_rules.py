"""A plugin can't lose a check of the kit without a written reason, whichever way it tries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from broken_families import TINY, reference

from bestiary.core.conformance.findings import Findings
from bestiary.core.conformance.model_answers import preemption
from bestiary.core.conformance.model_case import Suite
from bestiary.core.conformance.model_rules import check_class, checks_of
from bestiary.core.conformance.model_session import Recorder
from bestiary.core.errors import UsageError
from bestiary.core.progress import Silent
from bestiary.testing import ModelConformance

REASON = "the source rounds this tensor on purpose"


def made(name: str = "TestFamily", parent: type = ModelConformance, **body: Any) -> type:
    settings = {} if parent is not ModelConformance else {"model": "windowed", "configs": {"tiny": TINY}}
    return type(ModelConformance)(name, (parent,), {**settings, **body})


def _nothing(self: Any, case: Any) -> None:
    pass


def mixed(*, after: bool = False, parent: type = ModelConformance, above: type = object, **members: Any) -> type:
    """A class with a mixin that has the members, which stands before the kit or after it."""
    mixin = type("Shared", (above,), members)
    settings = {} if parent is not ModelConformance else {"model": "windowed", "configs": {"tiny": TINY}}
    return type(ModelConformance)("TestFamily", (parent, mixin) if after else (mixin, parent), settings)


def changed_later() -> None:
    """A mixin that is harmless when the class is made, and not any more when its checks run."""
    cls = mixed(helper=3)
    cls.__mro__[1].test_prefill = _nothing  # type: ignore[attr-defined]
    check_class(cls)


class _Deep:
    test_prefill = _nothing


_OF_SHARED = r"TestFamily, from Shared\."


REFUSED: Mapping[str, tuple[Callable[[], Any], str]] = {
    "an override": (lambda: made(test_prefill=_nothing), r"test_prefill: a check is overridden without"),
    "a check set to None": (lambda: made(test_prefill=None), r"test_prefill: a check is overridden"),
    "a marked override": (
        lambda: made(test_prefill=pytest.mark.skip(reason="later")(_nothing)),
        r"test_prefill: a check is overridden",
    ),
    "a waived check set to None": (
        lambda: made(test_prefill=None, waived={"test_prefill": REASON}),
        r"test_prefill: is no function",
    ),
    "no configs": (lambda: made(configs={}), r"configs: needs at least one config"),
    "configs of None": (lambda: made(configs=None), r"configs: needs at least one config"),
    "an empty config": (lambda: made(configs={"tiny": {}}), r"configs: needs at least one config"),
    "no model": (lambda: made(model=""), r"model: needs the name"),
    "an empty reason": (lambda: made(waived={"test_export": ""}), r"waived: test_export needs a reason in words"),
    "a blank reason": (lambda: made(waived={"test_export": " " * 40}), r"waived: test_export needs a reason"),
    "a reason of one word": (lambda: made(waived={"test_export": "unsupported!!"}), r"needs a reason in words"),
    "no reason at all": (lambda: made(waived={"test_export": None}), r"waived: test_export needs a reason"),
    "reasons in a list": (lambda: made(waived=["test_export"]), r"waived: is not a mapping"),
    "an unknown waiver": (
        lambda: made(waived={"test_exports": REASON}),
        r"no check 'test_exports'; the checks are test_conv",
    ),
    "a waiver for an unknown config": (
        lambda: made(waived={"test_export[huge]": REASON}),
        r"no check 'test_export\[huge\]'",
    ),
    "a skipped class": (lambda: pytest.mark.skip(made()), r"the mark skip would skip"),
    "a conditionally skipped class": (lambda: pytest.mark.skipif(True, reason="x")(made()), r"the mark skipif"),
    "a class that may fail": (lambda: pytest.mark.xfail(made()), r"the mark xfail"),
    "pytestmark in the body": (lambda: made(pytestmark=pytest.mark.skip), r"the mark skip"),
    "pytestmark in a list": (lambda: made(pytestmark=[pytest.mark.slow, pytest.mark.skip]), r"the mark skip"),
    "__test__ = False": (lambda: made(__test__=False), r"__test__: belongs to the conformance kit or to pytest"),
    "__test__ afterwards": (lambda: setattr(made(), "__test__", False), r"is not changed after it is made"),
    "a check replaced afterwards": (lambda: setattr(made(), "test_prefill", None), r"is not changed after"),
    "a check deleted": (lambda: delattr(ModelConformance, "test_prefill"), r"is not changed after it is made"),
    "a check of the kit replaced": (lambda: setattr(ModelConformance, "test_prefill", _nothing), r"is not changed"),
    "waivers afterwards": (lambda: setattr(made(), "waived", {"test_export": REASON}), r"is not changed after"),
    "a fixture of its own": (lambda: made(case=_nothing), r"case: belongs to the conformance kit"),
    "findings of its own": (lambda: made(findings=_nothing), r"findings: belongs to the conformance kit"),
    "its own parametrization": (lambda: made(pytest_generate_tests=_nothing), r"pytest_generate_tests: belongs"),
    "a constructor, for which pytest leaves a class out": (lambda: made(__init__=_nothing), r"__init__: belongs to"),
    "a setup that could skip": (lambda: made(setup_method=_nothing), r"setup_method: belongs to"),
    "fewer configs below": (
        lambda: made(parent=made(), configs={"other": TINY}),
        r"configs: belongs into TestFamily, which 'bestiary check' runs too",
    ),
    "waivers below": (lambda: made(parent=made(), waived={"test_export": REASON}), r"waived: belongs into TestFamily"),
    "an override by a mixin": (
        lambda: mixed(test_prefill=_nothing),
        _OF_SHARED + "test_prefill: a check is overridden",
    ),
    "an override by a mixin's mixin": (
        lambda: mixed(above=_Deep),
        r"TestFamily, from _Deep\.test_prefill: a check is overridden",
    ),
    "an override by a mixin below": (
        lambda: mixed(parent=made(), test_prefill=_nothing),
        _OF_SHARED + "test_prefill: a check is overridden",
    ),
    "an override by a mixin that changed": (changed_later, _OF_SHARED + "test_prefill: a check is overridden"),
    "a mixin's constructor": (lambda: mixed(__init__=_nothing), _OF_SHARED + "__init__: belongs to"),
    "a mixin's setup": (lambda: mixed(setup_method=_nothing), _OF_SHARED + "setup_method: belongs to"),
    "a setup after the kit": (lambda: mixed(after=True, setup_class=_nothing), _OF_SHARED + "setup_class: belongs"),
    "a constructor after the kit": (lambda: mixed(after=True, __init__=_nothing), _OF_SHARED + "__init__: belongs"),
    "a mixin's fixture": (lambda: mixed(case=_nothing), _OF_SHARED + "case: belongs to"),
    "a mixin's findings": (lambda: mixed(findings=_nothing), _OF_SHARED + "findings: belongs to"),
    "a mixin's parametrization": (
        lambda: mixed(pytest_generate_tests=_nothing),
        _OF_SHARED + "pytest_generate_tests: belongs to",
    ),
    "a mixin's marks": (lambda: mixed(pytestmark=pytest.mark.skip), r"the mark skip"),
    "a mixin's marks after the kit": (lambda: mixed(after=True, pytestmark=[pytest.mark.skip]), r"the mark skip"),
    "a mixin that answers for the class": (
        lambda: mixed(__getattribute__=lambda self, name: None),
        _OF_SHARED + "__getattribute__: belongs to",
    ),
    "a mixin's configs below": (
        lambda: mixed(parent=made(), configs={"other": TINY}),
        r"configs: belongs into TestFamily, which 'bestiary check' runs too",
    ),
    "a mixin's waivers below": (
        lambda: mixed(parent=made(), waived={"test_export": REASON}),
        r"waived: belongs into TestFamily",
    ),
    "a metaclass of its own": (
        lambda: type("Meta", (type(ModelConformance),), {})(
            "TestFamily", (ModelConformance,), {"model": "windowed", "configs": {"tiny": TINY}}
        ),
        r"TestFamily: its metaclass Meta could change what the kit sees of it",
    ),
    "an override below": (lambda: made(parent=made(), test_export=_nothing), r"test_export: a check is overridden"),
}


@pytest.mark.parametrize("way", REFUSED)
def test_a_way_around_the_checks_is_refused(way: str) -> None:
    attempt, complaint = REFUSED[way]
    with pytest.raises(TypeError, match=complaint):
        attempt()


def test_what_a_class_may_have() -> None:
    cls = made(test_of_its_own=_nothing, helper=3, waived={"test_export[tiny]": REASON}, __doc__="Of a family.")
    below = made(parent=cls, plugins=("broken_families",))
    assert checks_of(below) == checks_of(ModelConformance)
    assert len(checks_of(below)) >= 21


def test_a_mixin_may_help() -> None:
    replaced = mixed(test_prefill=_nothing, waived={"test_prefill": REASON}, helper=3, test_of_its_own=_nothing)
    check_class(mixed(after=True, test_prefill=_nothing, case=None))
    assert len(checks_of(replaced)) >= 21


def test_what_a_class_says_stays_as_it_was() -> None:
    said = {"tiny": dict(TINY)}
    cls: Any = made(configs=said, waived={"test_export": REASON})
    said["tiny"].clear()
    said.clear()
    assert cls.configs == {"tiny": TINY}
    for one in (cls.configs, cls.configs["tiny"], cls.waived):
        assert not hasattr(one, "clear")


def test_what_the_kits_code_did_not_conclude_is_a_failure() -> None:
    from bestiary.core.conformance.model_run import _outcomes

    recorder = Recorder(frozenset(["tiny"]), Silent())
    passed = SimpleNamespace(user_properties=[], skipped=False, failed=False, duration=0.0)
    recorder.reports["test_prefill", "tiny"] = recorder.reports["test_decode", "tiny"] = [passed]
    recorder.guard.concluded.add("test_family.py::TestFamily::test_decode[tiny]")
    checks = {one.check: one for one in _outcomes(made(), ["tiny"], recorder, False)}
    assert (checks["test_prefill"].outcome, checks["test_decode"].outcome) == ("failed", "passed")
    assert checks["test_prefill"].text == "the kit's own code did not run it to the end"


@pytest.mark.parametrize(("when", "outcome"), [("setup", "failed"), ("call", "none")])
def test_nothing_to_check_is_what_the_check_says_and_no_fixture(when: str, outcome: str) -> None:
    from bestiary.core.conformance.model_run import _outcome

    said = ("file", 1, "Skipped: none: the plugin has no GGUF weight map")
    report = SimpleNamespace(when=when, user_properties=[], skipped=True, failed=False, longrepr=said, duration=0.0)
    assert _outcome("test_gguf_map", "tiny", [report], None).outcome == outcome


def test_what_was_not_run_is_a_failure() -> None:
    from bestiary.core.conformance.model_run import _outcomes

    cls = made(waived={"test_export": REASON})
    checks = {one.check: one for one in _outcomes(cls, ["tiny"], Recorder(frozenset(), Silent()), False)}
    assert {one.outcome for one in checks.values()} == {"failed"}
    assert checks["test_prefill"].text == "it was not run"


def test_the_form_has_to_be_one_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    from bestiary.core.conformance.model import _long

    monkeypatch.setenv("BESTIARY_CONFORMANCE", "Long")
    with pytest.raises(UsageError, match="BESTIARY_CONFORMANCE: names no form; found 'Long', expected short or long"):
        _long()
    monkeypatch.setenv("BESTIARY_CONFORMANCE", "long")
    assert _long()


@pytest.mark.parametrize("window", [1, 2])
def test_where_windows_of_one_token_preempt_nobody_the_kit_says_so(window: int, tmp_path: Path) -> None:
    config = {**TINY, "sliding_window": window}
    cls = type(ModelConformance)(
        "Short",
        (ModelConformance,),
        {"model": "windowed", "configs": {"tiny": config}, "reference": staticmethod(reference)}
        | {"plugins": ("broken_families",)},
    )
    case = Suite(cls, tmp_path).cases["tiny"]
    properties: list[tuple[str, Any]] = []
    case.findings = Findings(properties)
    preemption(case, case.findings)
    assert dict(properties).get("note") == ("windows of one token: nobody is ever preempted" if window == 1 else None)


@pytest.mark.parametrize("check", [check for check in checks_of(ModelConformance) if not check.endswith("_parallel")])
def test_each_check_runs_alone(check: str, tmp_path: Path) -> None:
    cls: Any = made(reference=staticmethod(reference), plugins=("broken_families",))
    case = Suite(cls, tmp_path).cases["tiny"]
    function = getattr(cls, check)
    given = {"self": cls(), "case": case, "findings": case.findings}
    function(**{name: given[name] for name in signature(function).parameters})
    assert case.findings.looked
