"""Part D of the reliability catalogue: real distributions that misbehave, and what ``bestiary`` makes of each.

Of D32 it is only what an installed plugin may be called. What kernels do is told by ``bestiary check-kernel``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

import demo_plugins
import pytest
from scratch import Environment, Ran

pytestmark = pytest.mark.slow

_FAST = "from bestiary.core.plugins import loading\nloading.{} = 0.1"
_STRICT = ("--strict-plugins", "plugins")
# Asks for an architecture as conversion does, without the model that this would take.
_ASK = """
import sys
from bestiary.core.plugins import PluginHost
host = PluginHost.load(prefer=dict(pair.split("=") for pair in sys.argv[1:]))
print(host.model_for_architecture("ClashForCausalLM").name)
"""


@dataclass(frozen=True)
class Case:
    """One call of ``bestiary``.

    Args:
        plugins: which of the demo plugins it may load.
        states: what becomes of them, by name: state and a pattern for the reason. Looked up in ``plugins --json``.
        arguments, status, said: a call, its exit status and patterns for what it prints.
        before: code that runs first.
    """

    plugins: str
    states: dict[str, tuple[str, str]] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    status: int = 0
    said: tuple[str, ...] = ()
    before: str = ""


def _broken(name: str, reason: str, **more: Any) -> Case:
    """A plugin that is broken and leaves another one alone; strictly it is an error."""
    states = {name: ("broken", reason), "good": ("loaded", "")}
    said = (rf"bestiary: plugin {name} \(demo-{name} [\d.]+\): ",)
    return Case(f"{name},good", states, _STRICT, 69, said, **more)


CASES: dict[str, list[Case]] = {
    "D01": [
        _broken("import-error", "No module named 'no_such_module_here'.*install what provides no_such_module_here"),
        _broken("syntax-error", "SyntaxError"),
        # Something that needs it says so.
        Case("import-error", {}, ("kernels", "demo::op"), 69, ("import-error", "no_such_module_here")),
        Case("import-error", {}, ("kernels", "rms_norm"), 0, ("torch",)),
    ],
    "D02": [
        _broken("exits", "SystemExit: 3"),
        _broken("base-exception", "Odd: oddly"),
        # Nobody can tell a plugin's KeyboardInterrupt from Ctrl-C, so it ends the command, with the plugin's name.
        Case("interrupts,good", {}, ("plugins",), 130, ("interrupts.*interrupted while importing", "BESTIARY_PLUGINS=")),
    ],
    "D03": [
        Case(
            "hangs",
            {"hangs": ("loaded", "")},
            ("plugins",),
            0,
            (r"plugin hangs \(demo-hangs 1.0\) has been importing for", "was importing for"),
            _FAST.format("SLOW_IMPORT_SECONDS"),
        )
    ],
    "D06": [
        Case("twin", {"twin": ("refused", "demo-twin-a 1.0 and demo-twin-b 3.0")}, _STRICT, 69, ("--prefer twin=",)),
        Case("twin", {}, ("--prefer", "twin=demo-twin-b", *_STRICT), 0, ("the name is preferred from demo-twin-b 3.0|skipped",)),
        Case("twin", {}, ("--prefer", "twin=nobody", "plugins"), 2, ("does not claim it", "demo-twin-a or demo-twin-b")),
    ],
    "D07": [
        Case("clash-a,clash-b", {"clash-a": ("loaded", ""), "clash-b": ("loaded", "")}, ("plugins",), 0,
             ("architecture 'ClashForCausalLM' is claimed by demo-clash-a 1.0 and demo-clash-b 1.0",
              "kernel 'demo::clash:clash' is claimed by", "command 'clash' is claimed by")),
        Case("clash-a,clash-b", {}, ("clash",), 69, ("command 'clash': is claimed by demo-clash-a 1.0 and demo-clash-b",)),
        Case("clash-a,clash-b", {}, ("--prefer", "clash=demo-clash-b", "clash"), 0, ("b ran",)),
        Case("clash-a,clash-b", {}, ("--prefer", "clash=demo-clash-a", "clash"), 0, ("a ran",)),
        Case("clash-a", {}, ("clash",), 0, ("a ran",)),
    ],
    "D09": [
        Case("good,typoed", {}, ("plugins",), 69, ("no plugin 'typoed' is installed", "available: .*good, .*other")),
        Case("", {"good": ("skipped", "BESTIARY_PLUGINS"), "bestiary": ("loaded", "")}, ("plugins",), 0),
        Case("other", {"good": ("skipped", ""), "other": ("loaded", "")}, ("plugins",), 0),
    ],
    "D11": [_broken("typo", "no hook 'bestiary_register_model'.*did you mean 'bestiary_register_models'")],
    "D12": [
        _broken("arguments", _WHOLE := r"PluginValidationError: .*hook 'bestiary_register_models'.*\(register, more\)"
                r".*\{'more'\} are declared in the hookimpl but can not be found"),
        Case("arguments", {}, ("plugins",), 0, (_WHOLE,)),
        Case("arguments", {}, _STRICT, 69, (_WHOLE,)),
    ],
    "D13": [
        _broken("raises", "hook bestiary_register_models failed: ValueError: inner"),
        Case("raises", {}, ("--debug", *_STRICT), 69, ("ValueError: inner", "direct cause", "PluginError")),
    ],
    "D14": [
        _broken("returns", "returned a list"),
        _broken("generates", "generator"),
        _broken("text", "takes a Kernel, got a str"),
        Case("nothing", {"nothing": ("loaded", "")}, _STRICT, 0),
    ],
    "D15": [Case("mutates", {"mutates": ("loaded", "")}, _STRICT, 0)],
    "D16": [
        _broken("reenters", "a plugin host was asked for while this plugin was being loaded"),
        # The thread waits for its turn, which it would have when the hook that waits for it ended.
        Case("threads", {"threads": ("loaded", "")}, _STRICT, 0, (), _FAST.format("WAIT_SECONDS")),
    ],
    "D17": [
        Case(
            "slow-hook",
            {"slow-hook": ("loaded", "")},
            ("plugins",),
            0,
            (r"plugin slow-hook \(demo-slow-hook 1.0\) was in hook bestiary_register_kernels for 0\.\d s",),
            _FAST.format("SLOW_HOOK_SECONDS"),
        )
    ],
    "D32": [
        Case("un named,good", {"un named": ("refused", "entry point's name"), "good": ("loaded", "")}, _STRICT, 69),
        Case("module:os", {"module:os": ("refused", "entry point's name")}, ("plugins",), 0),
        _broken("command", "command 'doctor' is one of bestiary's own"),
        Case("too-new,good", {"too-new": ("refused", "requires bestiary >=99, this is bestiary")}, _STRICT, 69),
        Case("unranged", {"unranged": ("loaded", "")}, _STRICT, 0),
    ],
}  # fmt: skip
#: Kernels of the plugin faults: the check that finds each one's fault, and a pattern for what it says.
FAULTS: dict[str, dict[str, tuple[str, str]]] = {
    "D21": {"replaces": ("result", "out"), "retypes": ("result", "out")},
    "D23": {"beyond": ("bands", "beside")},
    "D24": {"short": ("fill", "")},
    "D25": {"spoils": ("inputs", "weight"), "keeps": ("references", ""), "returns": ("result", "")},
    "D26": {"fickle": ("determinism", ""), "social": ("invariance", "")},
    "D28": {"off": ("tolerance", "")},
    "D29": {"segfaults": ("crash", "SIGSEGV")},
}
_PARAMETERS = [
    pytest.param(case, id=f"{name}-{number}-{case.plugins or 'none'}")
    for name, cases in CASES.items()
    for number, case in enumerate(cases)
]


@pytest.mark.parametrize("case", _PARAMETERS)
def test_it_is_contained_and_told(case: Case, scratch: Environment) -> None:
    if case.arguments:
        ran = scratch.bestiary(*case.arguments, plugins=case.plugins, before=case.before)
        assert ran.status == case.status, ran
        for pattern in case.said:
            assert re.search(pattern, " ".join((ran.out + ran.err).split())), ran
        assert "--debug" in case.arguments or "Traceback" not in ran.err
    if case.states:
        listed = scratch.bestiary("plugins", "--json", plugins=case.plugins, before=case.before)
        assert listed.status == 0, listed
        for name, (state, reason) in case.states.items():
            found = listed.plugin(name)
            assert found["state"] == state and re.search(reason, found["reason"]), found
            assert found["distribution"].startswith("demo-") or name == "bestiary"
            assert state in ("loaded", "skipped") or not found["provides"], "nothing of it is left"


def test_D07_an_architecture_that_two_claim_is_the_one_that_was_chosen_or_an_error(scratch: Environment) -> None:
    both = "clash-a,clash-b"
    undecided = scratch.python(_ASK, plugins=both)
    assert undecided.status == 1 and "is claimed by demo-clash-a 1.0 and demo-clash-b 1.0" in undecided.err
    for letter in "ab":
        ran = scratch.python(_ASK, f"ClashForCausalLM=demo-clash-{letter}", plugins=both)
        assert ran.out.strip() == f"clash_{letter}", ran


@pytest.mark.parametrize(("order", "used"), [("new first", "2.0"), ("old first", "1.0")], ids=lambda one: str(one))
def test_D08_of_two_copies_the_one_that_python_imports_counts(order: str, used: str, scratch: Environment) -> None:
    sites = (scratch.folder / "site", scratch.folder / "old")
    both = replace(scratch, sites=sites if order == "new first" else sites[::-1])
    listed = both.bestiary("plugins", "--json", plugins="stale")
    found = [one for one in listed.json["plugins"] if one["name"] == "stale"]
    assert [(one["state"], one["version"]) for one in found] == [("loaded", used)]
    other = {"1.0": "2.0", "2.0": "1.0"}[used]
    assert f"{used} is used, {other} is ignored" in found[0]["notes"][0]
    assert "demo-stale is on sys.path twice" in listed.err
    doctor = both.bestiary("doctor", "--json", plugins="stale")
    said = [one["text"] for one in doctor.json["sections"]["metadata"] if one["subject"] == "demo-stale"]
    assert said == [f"is on sys.path twice: {used} counts, demo_stale-{other}.dist-info is stale and can be removed"]


def test_D08_an_egg_info_that_a_checkout_left_behind_is_no_plugin_of_its_own(scratch: Environment) -> None:
    egg = scratch.folder / "checkout" / "demo_stale.egg-info"
    egg.mkdir(parents=True)
    (egg / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: demo_stale\nVersion: 0.1\n")
    (egg / "entry_points.txt").write_text("[bestiary]\nstale = demo_stale.plugin\n")
    both = replace(scratch, sites=(scratch.folder / "site", egg.parent))
    listed = both.bestiary("plugins", "--json", plugins="stale")
    assert [one["version"] for one in listed.json["plugins"] if one["name"] == "stale"] == ["2.0"]
    assert "2.0 is used, 0.1 is ignored" in listed.plugin("stale")["notes"][0]
    doctor = both.bestiary("doctor", "--json", plugins="stale").json["sections"]["metadata"]
    assert ["demo_stale.egg-info is stale" in one["text"] for one in doctor] == [True]


def test_D15_what_is_registered_and_what_is_asked_cannot_be_changed(scratch: Environment) -> None:
    code = """
from bestiary.core.plugins import PluginHost
from bestiary.spec import Call
host = PluginHost.load()
print(dict(host.model("kept").weights))
call = Call("demo::op", {"x": 1}, "cpu")
try:
    host.kernel("demo::op", "mutates").supports(call)
except TypeError:
    print(call.arguments["x"])
"""
    ran = scratch.python(code, plugins="mutates")
    assert ran.out.splitlines() == ["{'hf': 'a:HF'}", "1"], ran


def test_D16_a_thread_of_a_hook_that_loads_plugins_is_told_who_holds_it_up(scratch: Environment) -> None:
    code = """
from bestiary.core.plugins import PluginHost, loading
loading.WAIT_SECONDS = 0.1
PluginHost.load()
import demo_threads.plugin
print(*demo_threads.plugin.said)
"""
    ran = scratch.python(code, plugins="threads")
    assert ran.out.count("another thread has been loading plugin threads (demo-threads 1.0)") == 1, ran


@pytest.fixture(scope="module")
def checked(scratch: Environment) -> Ran:
    """``check-kernel`` on an installed distribution of faulty kernels."""
    return scratch.bestiary("check-kernel", "demo-faults", "--device", "cpu", "--json", "-", plugins="faults")


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_kernel_of_an_installed_plugin_is_named_with_its_fault(name: str, checked: Ran) -> None:
    assert checked.status == 69, checked
    reports = {one["kernel"]: one for one in checked.json["reports"]}
    assert [reports[one]["verdict"] for one in ("reference", "right")] == ["pass", "pass"]
    for kernel, (check, pattern) in FAULTS[name].items():
        assert reports[kernel]["verdict"] == "fail" and reports[kernel]["distribution"] == "demo-faults"
        found = {finding["check"]: finding["message"] for finding in reports[kernel]["findings"]}
        assert re.search(pattern, found[check]), found


_BUILDS = f"""{demo_plugins.ATTEMPT}
names = ("replaces", "off", "segfaults")
print(json.dumps({{name: attempt(name, "honest", 2, kernels={{"rms_norm": name}}) for name in names}}))
"""


def test_a_build_refuses_faulty_kernels_and_survives_them(scratch: Environment) -> None:
    ran = scratch.python(_BUILDS, plugins="liar,norms")
    assert ran.status == 0, ran
    said = {
        "replaces": ("E-KERNEL-WRONG", 69, "other memory or another shape"),  # D21
        "off": ("E-KERNEL-WRONG", 69, "differs from the op's reference at .*tolerance"),  # D28
        "segfaults": ("E-KERNEL-SUPPORT", 78, "its trial run was killed by SIGSEGV"),  # D29
    }
    for name, (code, status, pattern) in said.items():
        error = ran.json[name]
        assert (error["code"], error["status"], error["written"]) == (code, status, False), error
        assert f"kernel rms_norm={name}" in error["subject"], error
        assert re.search(pattern, f"{error['problem']} {error['found']}"), error


def test_every_id_of_the_host_has_a_case() -> None:
    ids = {*CASES, *FAULTS, *(name.split("_")[1] for name in globals() if name.startswith("test_D"))}
    elsewhere = {"D20": "test_lying_models.py", "D31": "test_lock.py"}
    numbers = (1, 2, 3, 6, 7, 8, 9, *range(11, 18), 20, 21, *range(23, 27), 28, 29, 31, 32)
    assert ids | elsewhere.keys() == {f"D{number:02}" for number in numbers}


def test_the_list_fits_a_page_and_says_what_each_plugin_is(scratch: Environment) -> None:
    ran: Ran = scratch.bestiary("plugins", plugins="good,other,import-error,too-new,nothing,raises", COLUMNS="100")
    lines = ran.out.splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].split() == ["plugin", "distribution", "API", "load", "provides"]
    rows = {line.split()[0]: line for line in lines[1:] if line}
    assert re.search(r"good +demo-good 1\.0 +>=1\.0,<2 +\d+ ms +kernel demo::op:good", rows["good"])
    assert re.search(r"import-error +demo-import-error 0\.3 .*broken: importing", rows["import-error"])
    assert re.search(r"too-new +demo-too-new 1\.0 +>=99 +- +refused: it requires", rows["too-new"])
    whole = scratch.bestiary("plugins", "--verbose", plugins="good").out
    assert "good (demo-good 1.0, demo_good.plugin)\n  kernel: demo::op:good" in whole
