"""Small real plugin distributions: written, built as wheels and installed into folders of their own, no network needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_PROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "{name}"
version = "{version}"
dependencies = [{requires}]

[project.entry-points.bestiary]
{entries}

[tool.setuptools]
packages = ["{package}"]
"""
_IMPORTS = "from bestiary import Command, Kernel, Model, Op, PluginError, hookimpl\n"
_MAIN = "from bestiary.core.cli.main import main\nmain()"


@dataclass(frozen=True)
class Distribution:
    """A plugin distribution ``demo-NAME`` of one package ``demo_NAME``.

    Args:
        plugin: the source of its plugin.py; the public names that plugins use are imported already.
        entry: the entry point's name, if not NAME.
        files: further modules of the package.
    """

    name: str
    plugin: str
    version: str = "1.0"
    requires: tuple[str, ...] = ("bestiary>=1.0,<2",)
    entry: str = ""
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def package(self) -> str:
        return f"demo_{self.name.replace('-', '_')}"

    def write(self, root: Path) -> Path:
        """The project's folder."""
        project = root / f"{self.name}-{self.version}"
        package = project / self.package
        package.mkdir(parents=True)
        requires = ", ".join(json.dumps(one) for one in self.requires)
        entries = f'{json.dumps(self.entry or self.name)} = "{self.package}.plugin"'
        (project / "pyproject.toml").write_text(
            _PROJECT.format(
                name=f"demo-{self.name}",
                version=self.version,
                requires=requires,
                entries=entries,
                package=self.package,
            )
        )
        (package / "__init__.py").write_text("")
        (package / "plugin.py").write_text(_IMPORTS + dedent(self.plugin))
        for name, text in self.files.items():
            (package / name).write_text(dedent(text))
        return project


def build(distributions: Sequence[Distribution], root: Path) -> dict[str, Path]:
    """The wheel of each, by ``NAME-VERSION``."""
    wheels = root / "wheels"
    projects = {(one.name, one.version): one.write(root / "projects") for one in distributions}
    latest = {one.name: one.version for one in distributions}
    for versions in (latest.items(), projects.keys() - latest.items()):  # pip takes one version of each at a time
        chosen = [projects[one] for one in sorted(versions)]
        run([sys.executable, "-m", "pip", "wheel", "-q", *_OFFLINE, "--no-build-isolation", "-w", wheels, *chosen])
    return {
        f"{one.name}-{one.version}": next(wheels.glob(f"{one.package}-{one.version}-*.whl")) for one in distributions
    }


def install(wheels: Sequence[Path], site: Path) -> None:
    """Install into a folder that may stand on ``sys.path``; what it has is left as it is."""
    run([sys.executable, "-m", "pip", "install", "-q", *_OFFLINE, "--no-compile", "--target", site, *wheels])


_OFFLINE = ("--no-index", "--no-deps", "--disable-pip-version-check")


def run(command: Sequence[Any], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command that must succeed."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


@dataclass(frozen=True)
class Ran:
    """What a call of ``bestiary`` did."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def plugin(self, name: str) -> dict[str, Any]:
        """A plugin's row of ``plugins --json``."""
        return next(one for one in self.json["plugins"] if one["name"] == name)


@dataclass(frozen=True)
class Environment:
    """Folders with installed plugins, in front of this process's path; every call is a process of its own."""

    folder: Path
    sites: tuple[Path, ...]

    def bestiary(self, *arguments: str, plugins: str | None = None, before: str = "", **variables: str) -> Ran:
        """Call ``bestiary`` in the environment's folder.

        Args:
            plugins: ``BESTIARY_PLUGINS``.
            before: code that runs first in the process.
            variables: further environment variables.
        """
        return self.python(f"{before}\n{_MAIN}", *arguments, plugins=plugins, **variables)

    def python(self, code: str, *arguments: str, plugins: str | None = None, **variables: str) -> Ran:
        """Run Python code there."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("BESTIARY_")}
        path = os.pathsep.join([*map(str, self.sites), *(entry for entry in sys.path if entry)])
        allowed = {} if plugins is None else {"BESTIARY_PLUGINS": plugins}
        environment = {
            **inherited,
            "PYTHONPATH": path,
            "BESTIARY_HOME": str(self.folder / "home"),
            **allowed,
            **variables,
        }
        done = subprocess.run(
            [sys.executable, "-P", "-c", code, *arguments],
            capture_output=True, text=True, check=False, env=environment, cwd=self.folder, stdin=subprocess.DEVNULL,
            timeout=300,
        )  # fmt: skip
        return Ran(done.returncode, done.stdout, done.stderr)
