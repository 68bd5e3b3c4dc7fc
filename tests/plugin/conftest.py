"""Fake distributions on a temporary ``sys.path`` entry: modules, metadata and entry points, nothing installed."""

import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import dedent
from types import ModuleType

import demo_plugins
import pytest
from scratch import Environment, build, install


class Site:
    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root, self.patch = root, patch
        self.modules: list[str] = []

    def folder(self, name: str, *, first: bool = False) -> Path:
        path = self.root / name
        path.mkdir(parents=True, exist_ok=True)
        if str(path) not in sys.path:
            self.patch.setattr(sys, "path", [str(path), *sys.path] if first else [*sys.path, str(path)])
        return path

    def module(self, name: str, source: str, folder: str = "site") -> None:
        text = "from bestiary import Command, Fusion, Kernel, Model, Op, PluginError, Reader, hookimpl\n" + dedent(
            source
        )
        (self.folder(folder) / f"{name}.py").write_text(text)
        self.modules.append(name)
        importlib.invalidate_caches()

    def dist(
        self,
        name: str,
        entries: Mapping[str, str],
        *,
        version: str = "1.0",
        requires: Sequence[str] = (),
        folder: str = "site",
        first: bool = False,
    ) -> None:
        info = self.folder(folder, first=first) / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        (info / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {one}" for one in requires), ""]))
        table = "\n".join(f"{entry} = {value}" for entry, value in entries.items())
        (info / "entry_points.txt").write_text(f"[bestiary]\n{table}\n")
        importlib.invalidate_caches()

    def plugin(self, name: str, source: str, **options: object) -> str:
        """A distribution ``fake-NAME`` with one entry point NAME; gives its module's name."""
        module = f"fake_{name}_plugin"
        self.module(module, source)
        self.dist(f"fake-{name}", {name: module}, **options)  # type: ignore[arg-type]
        return module


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The demo plugins' wheels, by ``NAME-VERSION``."""
    return build(demo_plugins.DISTRIBUTIONS, tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="session")
def scratch(wheels: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """All of them installed; the older one of those with two versions in a folder of its own, which is not on the path."""
    root = tmp_path_factory.mktemp("scratch")
    install([wheel for name, wheel in wheels.items() if name != "stale-1.0"], root / "site")
    install([wheels["stale-1.0"]], root / "old")
    return Environment(root, (root / "site",))


@pytest.fixture
def own(wheels: Mapping[str, Path], tmp_path: Path) -> Environment:
    """An environment to change: two plugins that are all right."""
    install([wheels["good-1.0"], wheels["other-1.0"]], tmp_path / "site")
    return Environment(tmp_path, (tmp_path / "site",))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.delenv("BESTIARY_PLUGINS", raising=False)
    # The host is under test, not what the SDK itself registers.
    monkeypatch.setitem(sys.modules, "bestiary.core.plugin", ModuleType("bestiary.core.plugin"))
    made = Site(tmp_path, monkeypatch)
    yield made
    for name in made.modules:
        sys.modules.pop(name, None)
    importlib.invalidate_caches()
