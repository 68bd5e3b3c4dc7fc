"""``bestiary lock`` and ``--locked`` against installed distributions: every way in which a plugin set can drift."""

from __future__ import annotations

import importlib
import json
import os
import py_compile
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import cache_from_source
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import Any

import demo_plugins
import pytest
from scratch import Environment, install

from bestiary import DataError, PluginError
from bestiary.core.plugins import Origin, PluginHost, lockfile
from bestiary.core.plugins.code import digest
from bestiary.core.plugins.discover import Candidate

SET = "good,other,stale"


def _changed(own: Environment) -> None:
    with (own.folder / "site" / "demo_good" / "plugin.py").open("a") as file:
        file.write("\nSLY = True\n")


def _added(own: Environment) -> None:
    (own.folder / "site" / "demo_good" / "more.py").write_text("")


def _cut(own: Environment) -> None:
    (own.folder / "site" / "demo_good" / "__init__.py").unlink()


def _gone(own: Environment) -> None:
    for path in (own.folder / "site").glob("demo_good*"):
        shutil.rmtree(path)


def _touched(own: Environment) -> None:
    (own.folder / "site" / "demo_good" / "plugin.py").touch()
    (own.folder / "site" / "demo_good" / "__pycache__").mkdir(exist_ok=True)
    (own.folder / "site" / "demo_good" / "__pycache__" / "junk.pyc").write_text("x")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "kind", "found", "locked"),
    [
        pytest.param(_changed, "code", r"1\.0 with code sha256:\w{12}", r"code sha256:\w{12}", id="changed file"),
        pytest.param(_added, "code", r"1\.0 with code sha256:\w{12}", r"code sha256:\w{12}", id="added file"),
        pytest.param(_cut, "code", r"1\.0 with code sha256:\w{12}", r"code sha256:\w{12}", id="removed file"),
        pytest.param(_gone, "missing", "nothing", r"1\.0", id="uninstalled"),
    ],
)
def test_D31_code_that_changed_since_it_was_locked_is_refused_before_it_runs(
    own: Environment, change: Callable[[Environment], None], kind: str, found: str, locked: str
) -> None:
    assert own.bestiary("lock").status == 0
    assert own.bestiary("lock", "--check").status == own.bestiary("--locked", "plugins").status == 0
    change(own)
    check = own.bestiary("lock", "--check", "--json")
    assert check.status == 69
    (drift,) = check.json["drift"]
    assert (drift["distribution"], drift["kind"]) == ("demo-good", kind)
    assert re.fullmatch(found, drift["found"]) and re.fullmatch(locked, drift["locked"])
    shown = own.bestiary("lock", "--check")
    assert f"demo-good: found {drift['found']}, locked is {drift['locked']}" in shown.out

    watched = "import sys, atexit\natexit.register(lambda: print('imported', 'demo_good.plugin' in sys.modules))"
    refused = own.bestiary("--locked", "plugins", before=watched)
    assert refused.status == 69 and "distribution demo-good: is not as bestiary.lock has it" in refused.err
    assert refused.out == "imported False\n"
    warned = own.bestiary("doctor", "--json").json["sections"]["lock"]
    assert [(one["subject"], one["level"]) for one in warned] == [("demo-good", "warning")]
    assert own.bestiary("plugins").status == 0, "without --locked it is only told"


@pytest.mark.slow
def test_what_is_new_another_version_or_the_same(own: Environment, wheels: dict[str, Path]) -> None:
    lock = str(own.folder / "some.lock")
    install([wheels["stale-1.0"]], own.folder / "site")
    assert own.bestiary("lock", lock, plugins=SET).status == 0
    _touched(own)
    assert own.bestiary("--lock-file", lock, "plugins", plugins=SET).status == 0, "times and compiled files don't count"
    shutil.rmtree(own.folder / "site")
    install([wheels["good-1.0"], wheels["stale-2.0"], wheels["nothing-1.0"], wheels["other-1.0"]], own.folder / "site")
    more = f"{SET},nothing"
    drift = own.bestiary("lock", lock, "--check", "--json", plugins=more).json["drift"]
    assert [(one["distribution"], one["kind"], one["found"], one["locked"]) for one in drift] == [
        ("demo-nothing", "extra", "1.0", "nothing"),
        ("demo-stale", "version", "2.0", "1.0"),
    ]
    by_variable = own.bestiary("plugins", plugins=more, BESTIARY_LOCKED=lock)
    assert by_variable.status == 69 and "demo-nothing: is not as some.lock has it, the first of 2" in by_variable.err
    allowed = own.bestiary("plugins", plugins=SET, BESTIARY_LOCKED=lock)
    assert "distribution demo-stale" in allowed.err and "found 2.0, expected 1.0" in allowed.err
    fewer = own.bestiary("plugins", plugins="good,stale", BESTIARY_LOCKED=lock)
    assert "distribution demo-other" in fewer.err, "what is not loaded is missing"
    llm = (
        "from bestiary import LLM, PluginError\ntry: LLM('x', lock='some.lock')\nexcept PluginError as e: print(e.code)"
    )
    assert own.python(llm).out == "E-PLG-LOCKED\n"


def _unchecked(package: Path) -> None:
    _compiled(package, PycInvalidationMode.UNCHECKED_HASH)


def _with_the_sources_time(package: Path) -> None:
    _compiled(package, PycInvalidationMode.TIMESTAMP)


def _with_the_sources_hash(package: Path) -> None:
    """Header of the source's own, code of another."""
    sly = Path(_compiled(package, PycInvalidationMode.CHECKED_HASH)).read_bytes()
    own = py_compile.compile(str(package / "plugin.py"), invalidation_mode=PycInvalidationMode.CHECKED_HASH)
    Path(str(own)).write_bytes(Path(str(own)).read_bytes()[:16] + sly[16:])


def _without_source(package: Path) -> None:
    _compiled(package, PycInvalidationMode.TIMESTAMP, target="helper.pyc")


def _compiled(package: Path, mode: PycInvalidationMode, target: str = "") -> str:
    """Other code of the same length, compiled in the place of the plugin's, with the time of its source."""
    source, facts = package / "plugin.py", (package / "plugin.py").stat()
    other = package.parent / "other.py"
    other.write_text("SLY = 2\n")
    os.utime(other, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    place = str(package / target) if target else cache_from_source(str(source))
    return str(py_compile.compile(str(other), place, str(source), invalidation_mode=mode))


@pytest.mark.parametrize(
    "change",
    [_unchecked, _with_the_sources_time, _with_the_sources_hash, _without_source],
    ids=lambda one: one.__name__,
)
def test_compiled_code_that_would_run_and_is_not_the_sources_counts(
    change: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / f"demo_compiled{change.__name__}"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "plugin.py").write_text("SLY = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    module = f"{package.name}.plugin"
    candidates = [Candidate(Origin("demo", "demo", "1"), module, lambda: None, "demo")]
    before = digest(candidates)
    for mode in PycInvalidationMode:
        py_compile.compile(str(package / "plugin.py"), invalidation_mode=mode)
        assert digest(candidates) == before, "what the source compiles to does not count"
    change(package)
    assert digest(candidates) != before
    if change is not _without_source:
        ran = [sys.executable, "-c", f"import {module} as plugin; print(plugin.SLY)"]
        assert subprocess.run(ran, cwd=tmp_path, capture_output=True, text=True, check=True).stdout == "2\n"
        (package / "plugin.py").write_text("SLY = 12\n")
        if change is not _unchecked:
            stale = digest(candidates)
            shutil.rmtree(package / "__pycache__")
            assert digest(candidates) == stale, "what an import would not take does not count"


@pytest.mark.slow
def test_no_plugin_is_imported_to_be_locked(scratch: Environment) -> None:
    ran = scratch.bestiary("lock", "all.lock", "--json", plugins="good,interrupts,exits")
    assert ran.status == 0 and {"demo-good", "demo-interrupts"} <= ran.json["distributions"].keys()


@pytest.mark.slow
def test_an_editable_installation_is_locked_by_the_files_it_points_at(
    own: Environment, wheels: dict[str, Path]
) -> None:
    """A path file in place of an installed package, as an editable installation has."""
    site, project = own.folder / "site", own.folder / "project"
    project.mkdir()
    (site / "demo_good").rename(project / "demo_good")
    record = next(site.glob("demo_good-*.dist-info")) / "RECORD"
    kept = [line for line in record.read_text().splitlines() if not line.startswith("demo_good/")]
    record.write_text("\n".join(kept) + "\n")
    before = f"import site; site.addsitedir({str(site)!r})"
    (site / "__editable__.demo_good.pth").write_text(f"{project}\n")
    assert own.bestiary("lock", before=before).status == 0
    (project / "demo_good" / "plugin.py").write_text("")
    (drift,) = own.bestiary("lock", "--check", "--json", before=before).json["drift"]
    assert (drift["distribution"], drift["kind"]) == ("demo-good", "code")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("format = 2", "field format: is not known; found 2, expected 1", id="newer"),
        pytest.param("format = 1", "field distributions", id="empty"),
        pytest.param("{", "is not TOML", id="not TOML"),
        pytest.param("format = 1\n[distributions.a]\nversion = 3", "distribution a: is incomplete", id="fields"),
        pytest.param("x" * (2**20 + 1), "is too large", id="large"),
    ],
)
def test_a_damaged_lock_is_one_sentence(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "bestiary.lock").write_text(text)
    with pytest.raises(DataError, match=said) as refused:
        lockfile.read(tmp_path / "bestiary.lock")
    assert refused.value.exit_status == 65


def test_a_lock_says_of_each_distribution_what_it_is(site, tmp_path: Path) -> None:
    site.plugin("one", "", version="2.5")
    site.plugin("two", "")
    from bestiary.core.plugins.select import choose

    choice = choose((), {})
    now = lockfile.lock((*choice.chosen, *choice.demanded))
    assert (now["fake-one"].version, now["fake-one"].plugins) == ("2.5", ("one",))
    path = tmp_path / "some.lock"
    path.write_text(lockfile.text(now))
    assert lockfile.read(path) == now and not lockfile.drift(lockfile.read(path), now)


def test_without_a_lock_no_file_of_a_plugin_is_read(site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.plugin("one", "")
    monkeypatch.setattr("bestiary.core.plugins.lockfile.digest", lambda _: pytest.fail("a digest was computed"))
    assert not PluginHost.load().locked


def test_what_lies_nowhere_cannot_be_locked(site, tmp_path: Path) -> None:
    class Loose:
        pass

    Loose.__module__ = "nowhere_at_all"
    path = tmp_path / "some.lock"
    path.write_text('format = 1\n[distributions."x"]\nversion = "1"\nplugins = ["x"]\ndigest = ""\n')
    then = lockfile.read(path)
    assert [one.kind for one in lockfile.drift(then, then)] == ["code"]
    with pytest.raises(Exception, match=r"distribution .*: is not as some\.lock has it"):
        PluginHost.load(plugins=[Loose()], locked=path)


def test_the_environment_names_a_lock_for_everyone(site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BESTIARY_LOCKED", str(tmp_path / "gone.lock"))
    with pytest.raises(Exception, match=r"gone\.lock: can't be read") as refused:
        PluginHost.load()
    assert json.dumps(refused.value.as_dict()) and refused.value.exit_status == 66
    assert PluginHost.load(only=()).records(), "a child process loads what its parent was allowed to"


@pytest.mark.slow
def test_an_engine_is_held_to_the_plugins_it_was_built_with(own: Environment, wheels: dict[str, Path]) -> None:
    install([wheels["liar-1.0"]], own.folder / "site")
    made = own.python(f'{demo_plugins.ATTEMPT}\nprint(attempt("honest", "honest", 2))', plugins="liar")
    assert made.out == "{'code': None}\n", made
    (own.folder / "prompts.jsonl").write_text('{"prompt_token_ids": [1, 2, 3]}\n')
    ask = ("generate", "honest.engine", "--prompts", "prompts.jsonl", "-n", "2", "-t", "0")
    # A plugin that provides nothing that an engine is made of leaves it as it is.
    for plugins, status, said in (("liar", 0, ""), ("liar,nothing", 0, ""), ("liar,good", 69, "engine.json locks")):
        install([wheels["nothing-1.0"]], own.folder / "site")
        assert own.bestiary("lock", plugins=plugins).status == 0
        ran = own.bestiary("--locked", *ask, plugins=plugins)
        assert ran.status == status and said in ran.err, ran
    assert "demo-good; found 1.0, expected nothing" in ran.err
    assert own.bestiary(*ask, plugins="liar,good").status == 0, "without --locked it runs"


def test_an_engine_of_another_version_is_told_or_refused(
    site: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bestiary.core.engine.engine import EngineManifest

    site.plugin("one", "@hookimpl\ndef bestiary_register_ops(register): register(Op(name='a::b', declaration='a:b'))")
    monkeypatch.setenv("BESTIARY_PLUGINS", "one")
    host = PluginHost.load()
    options: Any = None
    EngineManifest(options, options, EngineManifest.lock_of(host)).check_lock(host)
    assert EngineManifest.lock_of(host) == {"fake-one": "1.0"} and not caplog.text
    then = EngineManifest(options, options, {"fake-one": "0.9", "fake-gone": "3"})
    then.check_lock(host)
    assert "engine was built with fake-one 0.9, found is 1.0" in caplog.text
    assert "engine was built with fake-gone 3, found is nothing" in caplog.text
    host.locked = True
    with pytest.raises(PluginError, match=r"locks another version of fake-gone; found nothing, expected 3"):
        then.check_lock(host)
