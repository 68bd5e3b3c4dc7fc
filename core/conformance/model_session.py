"""A run of pytest over a conformance class, away from the plugin's own test settings."""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from bestiary.core.progress import Progress

_FILE = """import {module}

class TestConformance({module}.{path}):
    plugins = {plugins!r}
    prefer = {prefer!r}
"""


class Recorder:
    """A pytest plugin that keeps what it is told."""

    def __init__(self, configs: frozenset[str], progress: Progress) -> None:
        from bestiary.core.conformance.model import guard

        self.configs, self.progress = configs, progress
        self.guard = guard()
        self.reports: dict[tuple[str, str], list[Any]] = {}
        self.broken: list[str] = []
        self.interrupted = False

    @property
    def concluded(self) -> set[tuple[str, str]]:
        """Check and config of what the kit's own code ran to the end."""
        return {place_of(nodeid) for nodeid in self.guard.concluded}

    def pytest_configure(self, config: Any) -> None:
        self.guard.register(config)

    def pytest_keyboard_interrupt(self) -> None:
        self.interrupted = True

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        others = [item for item in items if _config_of(item.nodeid) not in ("", *self.configs)]
        items[:] = [item for item in items if item not in others]
        config.hook.pytest_deselected(items=others)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.broken.append(str(report.longrepr))

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.reports.setdefault(place_of(report.nodeid), []).append(report)
        if report.when == "teardown":
            self.progress.advance(1)


def place_of(nodeid: str) -> tuple[str, str]:
    return nodeid.rpartition("::")[2].partition("[")[0], _config_of(nodeid)


def _config_of(nodeid: str) -> str:
    return nodeid.partition("[")[2].removesuffix("]")


def run_pytest(
    reference: str, plugins: Sequence[str], prefer: Mapping[str, str], long: bool, recorder: Recorder
) -> None:
    """Run the class in a folder of its own: no settings, conftest or pytest plugins of anybody's take part."""
    import pytest

    from bestiary.core.conformance.model import VARIABLE

    module, _, path = reference.partition(":")
    variables = {
        VARIABLE: "long" if long else "short",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTEST_ADDOPTS": "",
        "PYTEST_PLUGINS": "",
    }
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    with tempfile.TemporaryDirectory(prefix="bestiary-check-") as folder, _environ({**variables, **quiet}):
        # pytest keeps modules by name: every run has its own.
        file = Path(folder) / f"test_{re.sub(r'[^0-9a-zA-Z]', '_', Path(folder).name)}.py"
        file.write_text(_FILE.format(module=module, path=path, plugins=tuple(plugins), prefer=dict(prefer)))
        settings = Path(folder) / "pytest.ini"
        settings.write_text("[pytest]\nmarkers = slow: many processes\n")
        options = [str(file), "-c", str(settings), "--rootdir", folder, "--basetemp", str(Path(folder) / "tmp")]
        # --doctest-modules and the like come from elsewhere; the terminal is the table's.
        options += ["--import-mode=importlib", "-p", "no:cacheprovider", "-p", "no:terminal", "-p", "no:logging"]
        with _ending(recorder):
            pytest.main(options, plugins=[recorder])
        sys.modules.pop(file.stem, None)


@contextmanager
def _ending(recorder: Recorder) -> Iterator[None]:
    """What ends a process ends the run too: pytest takes SystemExit for a failure, and ends quietly at Ctrl-C."""
    came: list[tuple[int, FrameType | None]] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        came.append((number, frame))
        raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGTERM, interrupt) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGTERM, handler if handler is not None else signal.SIG_DFL)
    if came and callable(handler):
        handler(*came[0])
    if came and not callable(handler):
        signal.raise_signal(signal.SIGTERM)
    if recorder.interrupted:
        raise KeyboardInterrupt


@contextmanager
def _environ(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
