"""Plugins of API 1 from outside work as they are; see README.md beside this file."""

from __future__ import annotations

import ast
import hashlib
import zipfile
from pathlib import Path

import pytest
from scratch import Environment

HERE = Path(__file__).parent
WHEELS = {
    "bestiary_heron-1.0.0-py3-none-any.whl": "bd5ac6d3ae685353c1dc0d260535c20966d13d1b7b6f8a8bf6cf5fb26be334a6",
    "bestiary_anvil-1.0.0-py3-none-any.whl": "b504b0605c49fd7ede19b23f5de90338e84291ef48445d9f7906f0096ddd1cbb",
}
PUBLIC = {"bestiary", *(f"bestiary.{name}" for name in ("layers", "ops", "converters", "spec", "testing", "hookspecs"))}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both, as pip would lay them."""
    folder = tmp_path_factory.mktemp("site")
    for name in WHEELS:
        with zipfile.ZipFile(HERE / name) as wheel:
            wheel.extractall(folder)
    return folder


@pytest.fixture
def outside(tmp_path: Path, site: Path) -> Environment:
    return Environment(tmp_path, (site,))


@pytest.mark.parametrize("name", WHEELS)
def test_a_wheel_is_as_it_was(name: str) -> None:
    assert hashlib.sha256((HERE / name).read_bytes()).hexdigest() == WHEELS[name]
    assert {path.name for path in HERE.glob("*.whl")} == WHEELS.keys()


@pytest.mark.parametrize("name", WHEELS)
def test_they_use_public_names_only(name: str) -> None:
    with zipfile.ZipFile(HERE / name) as wheel:
        for source in (one for one in wheel.namelist() if one.endswith(".py")):
            for node in ast.walk(ast.parse(wheel.read(source))):
                names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and not node.level:
                    names = [node.module or ""]
                for module in names:
                    assert not module.startswith("bestiary.") or module in PUBLIC, f"{source} imports {module}"


def test_they_are_loaded(outside: Environment) -> None:
    listed = outside.bestiary("plugins", "--json")
    assert listed.status == 0, listed.err
    for name in ("heron", "anvil"):
        row = listed.plugin(name)
        assert row["state"] == "loaded", row


def test_they_run(outside: Environment) -> None:
    run("together", outside)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["fused", "deterministic", "watched", "quantized", "divided", "compared", "measured"])
def test_they_run_under_all_the_rest(what: str, outside: Environment) -> None:
    run(what, outside)


def run(what: str, outside: Environment) -> None:
    done = outside.python("import runpy, sys; runpy.run_module('outsider_runs', run_name='__main__')", what)
    assert done.status == 0, done.err


@pytest.mark.slow
def test_the_model_kit(outside: Environment) -> None:
    """Every check on both configs, ranks and quantization included; the GGUF map has nothing to check."""
    done = outside.bestiary("check", "heron", "--json", "-")
    assert done.status == 0, done.out + done.err


@pytest.mark.slow
@pytest.mark.parametrize("distribution", ["bestiary-heron", "bestiary-anvil"])
def test_the_kernel_kit(distribution: str, outside: Environment) -> None:
    done = outside.bestiary("check-kernel", distribution)
    assert done.status == 0, done.out + done.err
