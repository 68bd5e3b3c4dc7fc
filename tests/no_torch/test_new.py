"""``bestiary new``: what the templates render to, which names are refused, and that nothing half-written stays."""

import io
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from bestiary.core.cli.main import invoke
from bestiary.core.scaffold import names
from bestiary.core.scaffold.render import Template, api_range
from bestiary.core.version import __version__

ROOT = Path(__file__).resolve().parents[2]
LICENSES = {"Apache-2.0": "Apache License", "MIT": "MIT License", "BSD-3-Clause": "BSD 3-Clause License"}
COMMON = {".github/workflows/ci.yml", ".gitignore", "CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml"}
OWN = {
    "model": {
        *(f"bestiary_x1/{name}.py" for name in ("__init__", "config", "conformance", "convert", "model", "plugin")),
        "tests/test_conformance.py",
    },
    "kernel": {*(f"bestiary_x1/{name}.py" for name in ("__init__", "kernels", "plugin")), "tests/test_conformance.py"},
    "op": {
        *(f"bestiary_x1/{name}.py" for name in ("__init__", "kernels", "ops", "plugin")),
        "tests/test_conformance.py",
        "tests/test_values.py",
    },
}
VARIANTS = {
    "model": [[]],
    "kernel": [
        [f"--op={op}", triton]
        for op in ("rms_norm", "add_rms_norm", "gated_activation")
        for triton in ("--triton", "--no-triton")
    ],
    "op": [[]],
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty current directory."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def new(*arguments):
    return invoke(["new", *arguments, "--no-input"])


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("license", LICENSES)
@pytest.mark.parametrize("kind", OWN)
def test_each_template_renders_with_each_license(kind, license, here):
    assert new(kind, "x1", f"--license={license}", "--author", 'Ann "A" O\'Neil') == 0
    made = here / "bestiary-x1"
    assert files(made) == COMMON | OWN[kind] | {"bestiary_x1/py.typed"}
    project = tomllib.loads((made / "pyproject.toml").read_text())["project"]
    assert (project["name"], project["license"]) == ("bestiary-x1", license)
    assert project["authors"] == [{"name": 'Ann "A" O\'Neil'}]
    assert project["dependencies"] == [api_range(__version__)]
    assert project["entry-points"]["bestiary"] == {"x1": "bestiary_x1.plugin"}
    assert project["optional-dependencies"]["test"] == ["bestiary[testing]"]
    text = (made / "LICENSE").read_text()
    check = "bestiary check x1" if kind == "model" else "bestiary check-kernel bestiary-x1"
    assert (made / ".github" / "workflows" / "ci.yml").read_text().endswith(f"      - run: {check}\n")
    assert LICENSES[license] in text.partition("Copyright")[0] and (license == "Apache-2.0" or "Ann" in text)


def test_everything_rendered_is_clean_python_and_has_no_trace_of_the_template(here):
    for kind, variants in VARIANTS.items():
        for number, options in enumerate(variants):
            assert new(kind, f"{kind}_{number}", *options) == 0
    left = [
        path for path in here.rglob("*") if path.is_file() and re.search(r"cookiecutter|\{%|\{\{ ", path.read_text())
    ]
    assert [path.name for path in left if path.name != "ci.yml"] == []
    for path in here.rglob("*.py"):
        compile(path.read_text(), str(path), "exec")
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", "."], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind", OWN)
def test_the_templates_say_the_range_of_this_version(kind):
    assert Template.of(kind).values["_requires"] == api_range(__version__), (
        "bestiary's version moved: move cookiecutter.json's too"
    )


@pytest.mark.parametrize("kind", OWN)
def test_plain_cookiecutter_makes_the_same_project(kind, here, monkeypatch):
    from cookiecutter import config, main

    monkeypatch.setitem(config.DEFAULT_CONFIG, "replay_dir", str(here / "replay"))
    options = {
        "no_input": True,
        "default_config": True,
        "directory": f"templates/new-{kind}",
        "output_dir": str(here / "plain"),
    }
    made = Path(main.cookiecutter(str(ROOT), extra_context={"name": "x1"}, **options))
    assert new(kind, "x1") == 0
    assert made.name == "bestiary-x1"
    assert {name: (made / name).read_text() for name in files(made)} == {
        name: (here / "bestiary-x1" / name).read_text() for name in files(here / "bestiary-x1")
    }


@pytest.mark.parametrize("name", ["class", "../evil", "/abs", "", 'a"b', "tests"])
def test_plain_cookiecutter_refuses_a_name_that_is_none(name, here, monkeypatch, capfd):
    from cookiecutter import config, exceptions, main

    monkeypatch.setitem(config.DEFAULT_CONFIG, "replay_dir", str(here / "replay"))
    with pytest.raises(exceptions.FailedHookException):
        main.cookiecutter(
            str(ROOT),
            directory="templates/new-model",
            no_input=True,
            default_config=True,
            extra_context={"name": name},
        )
    said = capfd.readouterr().err
    assert f"{name!r} can't be the plugin's name" in said and "Traceback" not in said
    assert [path.name for path in here.iterdir() if path.name != "replay"] == []


NOT_NAMES = ["../up", "/abs", "a/b", ".", "", "Upper", "with-dash", "with space", "1st", "_x", "x_", "a__b", "x\ny"]
NOT_NAMES += [
    "ünicode",
    "x" * 41,
    "class",
    "none",
    "true",
    "json",
    "attention",
    "tests",
    "test_model",
    "model",
    "bestiary",
    "llama",
    "{{ 7 }}",
    *("torch", "numpy", "pytest", "pip", "conftest", "plugin"),
]


@pytest.mark.parametrize("name", NOT_NAMES)
@pytest.mark.parametrize("kind", ["model", "op"])
def test_names_are_refused_in_one_sentence(kind, name, here, capsys):
    assert new(kind, name) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("bestiary: name ")
    assert list(here.iterdir()) == []


def test_no_class_of_a_plugin_hides_one_that_its_template_imports(here):
    """What is not refused leaves every imported name alone."""
    assert new("model", "x1") == 0
    imported = set()
    for path in (here / "bestiary-x1").rglob("*.py"):
        for block in re.findall(r"import \(([^)]*)\)|import (.*)", path.read_text()):
            imported |= set(re.findall(r"\w+", "".join(block)))
    for one in imported & {names.class_of(one.lower()) for one in imported}:
        with pytest.raises(Exception, match="name"):
            names.check_name(one.lower())


def test_a_module_and_a_distribution_of_the_name_are_collisions(here, tmp_path, monkeypatch, capsys):
    (tmp_path / "path" / "bestiary_taken").mkdir(parents=True)
    metadata = tmp_path / "path" / "bestiary_listed-2.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: bestiary-listed\nVersion: 2.0\n")
    monkeypatch.syspath_prepend(tmp_path / "path")
    assert new("model", "taken") == new("model", "listed") == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "the package bestiary_taken" in first and "2.0 of it is installed" in second
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("name", ["invariant", "torch", "widened", "reference"])
@pytest.mark.parametrize("op", ["rms_norm", "gated_activation"])
def test_a_kernel_is_not_called_as_one_that_is_there(op, name, here, monkeypatch, capsys):
    monkeypatch.setenv("BESTIARY_PLUGINS", "")
    assert new("kernel", name, f"--op={op}") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"bestiary: name '{name}': is ")
    assert list(here.iterdir()) == []


REGISTERING = """
from bestiary import Kernel, Op, hookimpl

@hookimpl
def bestiary_register_ops(register):
    register(Op(name="registering::soft", declaration="m:soft"))

@hookimpl
def bestiary_register_kernels(register):
    for op, name in (("rms_norm", "quick"), ("rms_norm", "fast_triton")):
        register(Kernel(op=op, name=name, run="m:run"))
"""


def test_names_of_a_plugins_kernels_and_ops_are_taken(here, tmp_path, monkeypatch, capsys):
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "registering_module.py").write_text(REGISTERING)
    monkeypatch.syspath_prepend(tmp_path / "path")
    command = ["-p", "registering_module", "new"]
    taken = [("kernel", "quick"), ("kernel", "fast"), ("op", "registering")]
    for kind, name in taken:
        assert invoke([*command, kind, name, "--no-input"]) == 2
        assert "is taken: registering_module" in capsys.readouterr().err
    assert list(here.iterdir()) == []
    assert invoke([*command, "op", "quick", "--no-input"]) == 0


SERVING = """
from bestiary import Model, hookimpl

@hookimpl
def bestiary_register_models(register):
    register(Model(name="other", architectures=("OtherForCausalLM",), config="m:C", model="m:M", weights={}))
"""


def test_an_architecture_that_is_served_or_is_no_class_is_refused(here, tmp_path, monkeypatch, capsys):
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "serving_other.py").write_text(SERVING)
    monkeypatch.syspath_prepend(tmp_path / "path")
    command = ["-p", "serving_other", "new", "model", "x1", "--no-input", "--architecture"]
    assert invoke([*command, "OtherForCausalLM"]) == 2
    assert "serving_other" in capsys.readouterr().err
    assert invoke([*command, "{{ 7 }}"]) == 2
    assert list(here.iterdir()) == []
    assert invoke([*command, "AnotherForCausalLM"]) == 0


def test_an_op_that_is_no_function_and_a_choice_that_is_none_are_refused(here):
    assert new("op", "x1", "--op", "def") == new("op", "x1", "--op", "inputs") == new("op", "x1", "--op", "a-b") == 2
    assert new("kernel", "x1", "--op", "softmax") == new("model", "x1", "--license", "GPL") == 2
    assert new("model", "x1", "--author", "two\nlines") == 2
    assert list(here.iterdir()) == []


def test_an_existing_folder_is_left_alone(here, capsys):
    (here / "bestiary-x1").mkdir()
    (here / "bestiary-x1" / "mine").write_text("mine")
    assert new("model", "x1") == 73
    said = capsys.readouterr().err
    assert "remove that folder" in said and "--overwrite" not in said
    assert files(here) == {"bestiary-x1/mine"} and len(list(here.iterdir())) == 1


@pytest.mark.parametrize("kind", ["model", "kernel", "op"])
def test_an_empty_folder_is_somebodys_too(kind, here, capsys):
    (here / "bestiary-x1").mkdir()
    assert new(kind, "x1") == 73
    assert "bestiary-x1: exists (choose another name, or remove that folder)" in capsys.readouterr().err
    assert list((here / "bestiary-x1").iterdir()) == [] and len(list(here.iterdir())) == 1


def test_a_failure_half_way_leaves_nothing(here, monkeypatch):
    from cookiecutter import generate

    render = generate.generate_file

    def fail(project_dir, infile, *rest):
        if infile.endswith("model.py"):
            raise OSError(28, "No space left on device")
        return render(project_dir, infile, *rest)

    monkeypatch.setattr(generate, "generate_file", fail)
    assert new("model", "x1") == 74
    assert list(here.iterdir()) == []


def test_without_cookiecutter_it_says_how_to_get_it(here, monkeypatch, capsys):
    for module in [one for one in sys.modules if one.partition(".")[0] == "cookiecutter"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "cookiecutter", None)
    assert new("model", "x1") == 69
    assert "pip install 'bestiary[new]'" in capsys.readouterr().err


def test_what_is_not_given_is_asked(here, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("x1\n\n\nAnn\n3\n"))
    assert invoke(["new", "model", "--description", "A model"]) == 0
    project = tomllib.loads((here / "bestiary-x1" / "pyproject.toml").read_text())["project"]
    assert (project["description"], project["license"]) == ("A model", "BSD-3-Clause")


def test_nobody_to_ask_is_a_sentence(here, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert invoke(["new", "model"]) == 2
    assert "--no-input" in capsys.readouterr().err.splitlines()[-1]


def test_into_lays_a_family_out_as_this_repository_does(here, capsys):
    (here / "models").mkdir()
    assert new("model", "x1", "--into", "models", "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert made["directory"] == "models/x1"
    assert (
        files(here / "models" / "x1")
        == set(made["files"])
        == (COMMON | OWN["model"] | {"bestiary_x1/py.typed"})
        - {
            ".github/workflows/ci.yml",
            ".gitignore",
        }
    )
    assert set(tomllib.loads((here / "models/x1/pyproject.toml").read_text())["tool"]) == {"setuptools"}
    assert new("model", "x2", "--into", "nowhere") == 66
