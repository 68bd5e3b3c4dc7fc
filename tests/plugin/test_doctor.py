"""``bestiary doctor``: it says what is wrong and goes on, whatever is broken."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from scratch import Environment

from bestiary.core.cli.main import invoke
from bestiary.core.doctor import examine
from bestiary.core.doctor.environment import packages
from bestiary.core.doctor.findings import Finding, Report, Section, section
from bestiary.core.plugins import PluginHost
from bestiary.core.plugins.stale import oddities

SECTIONS = ["environment", "torch", "processor", "devices", "plugins", "metadata", "lock", "kernels", "home"]


def levels(ran: Any, name: str) -> dict[str, str]:
    return {one["subject"]: one["level"] for one in ran["sections"][name]}


def texts(ran: Any, name: str) -> str:
    return "\n".join(f"{one['subject']}: {one['text']}" for one in ran["sections"][name])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BESTIARY_HOME", str(tmp_path / "home"))
    return tmp_path


def examined(capsys: pytest.CaptureFixture[str], *before: str) -> tuple[int, Any]:
    status = invoke([*before, "doctor", "--no-self-test", "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_a_sound_installation_is_all_right(site: Any, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site.plugin("sound", "")
    status, found = examined(capsys)
    assert (status, found["exit_status"], found["schema"]) == (0, 0, "bestiary.doctor/1"), found
    assert list(found["sections"]) == SECTIONS
    assert "fake-sound 1.0, loaded" in texts(found, "plugins")
    assert invoke(["doctor", "--no-self-test"]) == 0
    shown = capsys.readouterr().out
    assert "everything can be used" in shown and max(map(len, shown.splitlines())) <= 100


@pytest.mark.parametrize("error", ["ValueError('bad \\ud800')", "PluginError('E-X', 'x', 'bad \\ud800')"])
def test_a_message_that_no_stream_takes_is_escaped(
    site: Any, here: Path, capsys: pytest.CaptureFixture[str], error: str
) -> None:
    site.plugin("odd", f"raise {error}")
    for command, status in ((["plugins"], 0), (["doctor", "--no-self-test"], 69)):
        for options in ([], ["--json"]):
            assert invoke([*command, *options]) == status
            shown = capsys.readouterr()
            assert "\\ud800" in shown.out and not shown.err


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("import sys; print('junk'); sys.stdout.close()", id="import"),
        pytest.param(
            "import sys\n@hookimpl\ndef bestiary_register_ops(register): print('junk'); sys.stdout.close()", id="hook"
        ),
    ],
)
def test_stdout_is_the_commands_own_while_plugins_load(
    site: Any, here: Path, capsys: pytest.CaptureFixture[str], source: str
) -> None:
    site.plugin("noisy", source)
    assert invoke(["plugins", "--json"]) == 0
    shown = capsys.readouterr()
    states = {one["name"]: one["state"] for one in json.loads(shown.out)["plugins"]}
    assert states["noisy"] == "loaded" and shown.err == "junk\n"


def test_broken_and_quarrelling_plugins_are_errors_and_skipped_ones_are_not(
    site: Any, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clash = "@hookimpl\ndef bestiary_register_ops(register): register(Op(name='a::b', declaration='a:b'))"
    site.plugin("one", clash)
    site.plugin("two", clash)
    site.plugin("bad", "import no_such_module_here")
    site.plugin("late", "", requires=["bestiary>=99"])
    status, found = examined(capsys)
    assert status == 69
    said = levels(found, "plugins")
    assert (said["one"], said["bad"], said["late"], said["op a::b"]) == ("ok", "error", "error", "error")
    assert "--prefer a::b=DIST" in texts(found, "plugins") and "no_such_module_here" in texts(found, "plugins")
    _, decided = examined(capsys, "--prefer", "a::b=fake-one")
    assert levels(decided, "plugins")["op a::b"] == "note"
    monkeypatch.setenv("BESTIARY_PLUGINS", "one")
    status, found = examined(capsys)
    assert levels(found, "plugins") == {"bestiary": "ok", "one": "ok", "skipped": "note"}
    skipped = texts(found, "plugins").partition("skipped: not named in BESTIARY_PLUGINS: ")[2].splitlines()[0]
    assert {"bad", "late", "two"} <= set(skipped.split(", ")) and "one" not in skipped.split(", ")
    monkeypatch.setenv("BESTIARY_PLUGINS", "typoed")
    status, found = examined(capsys)
    assert status == 69 and "no plugin 'typoed' is installed" in texts(found, "plugins")
    assert "BESTIARY_PLUGINS: 'typoed'" in texts(found, "environment")


KERNELS = """
def no(call): return "it is for machines that nobody has"
def half(call): return None if call.arguments["x"].dtype == "bfloat16" else "it is for bfloat16"
def bad(call): raise ValueError("inner")
def odd(call): return call.arguments.update(x=1)

@hookimpl
def bestiary_register_ops(register):
    register(Op(name="rms_norm", declaration="bestiary.core.ops.norm:rms_norm"))
    register(Op(name="broken::op", declaration="no_such_module_here:op"))

@hookimpl
def bestiary_register_kernels(register):
    for name, supports in (("no", no), ("half", half), ("bad", bad), ("odd", odd)):
        register(Kernel(op="rms_norm", name=name, run="bestiary.core.kernels.dense:rms_norm", supports=supports))
    register(Kernel(op="rms_norm", name="needy", run="a:b", requires="no-such-distribution>=2"))
    register(Kernel(op="rms_norm", name="lost", run="no_such_module_here:run"))
"""


def test_kernels_that_cannot_run_here_say_why(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    site.module("kernel_plugin", KERNELS)
    monkeypatch.setattr("bestiary.core.plugins.kinds._foreign", lambda descriptor: None)
    host = PluginHost.load(plugins=["kernel_plugin"])
    report = examine(lambda: host, lambda: (), tests=False)
    found = {one.subject: one for part in report.sections if part.name == "kernels" for one in part.findings}
    assert found["broken::op"].level == "error" and "no_such_module_here" in found["broken::op"].text
    for said in (
        "no: no, it is for machines that nobody has",
        "half (bfloat16)",
        "bad: its supports() raised ValueError: inner",
        "odd: its supports() raised AttributeError",
        "needy: no, no-such-distribution is not installed",
        "lost: kernel rms_norm=lost: importing no_such_module_here failed",
    ):
        assert said in found["rms_norm"].text, found["rms_norm"].text


@pytest.mark.slow
def test_the_rest_is_examined_where_torch_is_broken(own: Environment) -> None:
    (own.folder / "site" / "torch").mkdir()
    (own.folder / "site" / "torch" / "__init__.py").write_text("raise OSError('libcudart.so.12: no such file')")
    ran = own.bestiary("doctor", "--json")
    assert ran.status == 70 and "Traceback" not in ran.err
    for name in ("torch", "processor", "devices", "kernels", "self-test"):
        assert set(levels(ran.json, name).values()) == {"failed"}
        assert "libcudart.so.12" in texts(ran.json, name)
    assert levels(ran.json, "plugins")["good"] == "ok" and list(ran.json["sections"]) == [*SECTIONS, "self-test"]


@pytest.mark.slow
def test_metadata_that_lies_is_shown(own: Environment, tmp_path: Path) -> None:
    site = own.folder / "site"
    (site / "demo_good" / "plugin.py").unlink()
    (site / "demo_good" / "__init__.py").unlink()
    (site / "demo_good").rmdir()
    url = {"url": f"file://{tmp_path}/vanished", "dir_info": {"editable": True}}
    other = next(site.glob("demo_other-*.dist-info"))
    (other / "direct_url.json").write_text(json.dumps(url))
    unreadable = site / "unreadable-1.0.dist-info"
    unreadable.mkdir()
    (unreadable / "METADATA").write_bytes(b"Name: \xff\xfe")
    (unreadable / "entry_points.txt").write_text("[bestiary]\nunreadable = a.b\n")
    ran = own.bestiary("doctor", "--no-self-test", "--json")
    said = texts(ran.json, "metadata")
    assert "demo-good: demo_good-1.0.dist-info announces demo_good.plugin, which is gone" in said
    assert "demo-other: was installed from a folder that is gone (vanished)" in said
    assert "unreadable-1.0.dist-info: its metadata can't be read" in said
    assert ran.status == 69, "what is announced and gone can't be loaded"
    listed = own.bestiary("plugins", "--json")
    assert listed.plugin("other")["state"] == "loaded" and "unreadable-1.0.dist-info" in listed.err


def test_two_versions_on_the_path_are_shown(site: Any) -> None:
    site.module("fake_new", "", folder="one")
    site.dist("fake-twice", {"twice": "fake_new"}, version="2.0", folder="one")
    site.dist("fake-twice", {"twice": "fake_new"}, version="1.0", folder="two")
    found = [one for one in oddities() if one.distribution == "fake-twice"]
    assert [one.text for one in found] == [
        "is on sys.path twice: 2.0 counts, fake_twice-1.0.dist-info is stale and can be removed"
    ]


def test_packages_out_of_range_are_errors_and_optional_ones_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "1.0", "transformers": "1.0", "numpy": "2.0"}

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr("bestiary.core.doctor.environment.metadata.version", version)
    lines = ("torch>=2.11", "numpy>=1.26", "pluggy>=1.5", "transformers>=5; extra == 'convert'")
    found = {one.subject: (one.text, one.level) for one in packages([Requirement(line) for line in lines])}
    assert found["torch"] == ("1.0, supported: >=2.11", "error")
    assert found["transformers"] == ("1.0, supported: >=5", "warning")
    assert found["pluggy"] == ("is not installed, supported: >=1.5", "error")
    assert found["triton"] == ("is not installed", "note")
    assert "numpy" not in found


def test_a_section_that_breaks_keeps_what_it_found() -> None:
    def breaks() -> Iterator[Finding]:
        yield Finding("first", "is there")
        raise SystemExit(3)

    found = section("part", breaks)
    assert [one.level for one in found.findings] == ["ok", "failed"] and "SystemExit: 3" in found.findings[1].text


@pytest.mark.parametrize(
    ("levels", "status"),
    [(("ok", "note", "warning"), 0), (("ok", "error"), 69), (("error", "failed"), 70)],
)
def test_the_exit_status_is_of_the_worst(levels: Any, status: int) -> None:
    findings = tuple(Finding("a", "b", level) for level in levels)
    assert Report((Section("part", findings),)).exit_status == status


def test_a_home_that_cannot_be_used_is_a_warning(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    (here / "file").write_text("")
    monkeypatch.setenv("BESTIARY_HOME", str(here / "file" / "home"))
    _, found = examined(capsys)
    assert "warning" in [one["level"] for one in found["sections"]["home"]], found["sections"]["home"]
