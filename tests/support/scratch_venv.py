"""A scratch environment: what is installed here, and what a test installs into it."""

from __future__ import annotations

import os
import subprocess
import sysconfig
import venv
from pathlib import Path

_BESTIARY = "from bestiary.core.cli.main import main; main()"


class Scratch:
    """Runs shell text with its own ``python``, ``pip``, ``pytest`` and ``bestiary``; pip asks no index.

    Args:
        home: an empty folder for the environment.
        work: where commands run.
    """

    def __init__(self, home: Path, work: Path) -> None:
        self.work = work
        venv.create(home, with_pip=False, symlinks=True)
        self._bin = home / "bin"
        site = next(home.glob("lib/python*/site-packages"))
        # Below its own packages come those of the running environment; addsitedir also reads their editable installs.
        parents = sorted({sysconfig.get_paths()[key] for key in ("purelib", "platlib")})
        (site / "parent.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in parents))
        python = self._bin / "python"
        self._script("pytest", f'exec {python} -m pytest -p no:cacheprovider "$@"')
        self._script("bestiary", f"exec {python} -c '{_BESTIARY}' \"$@\"")
        self._script("pip", f'shift; exec {python} -m pip install -q --no-index --no-build-isolation "$@"')

    def _script(self, name: str, text: str) -> None:
        path = self._bin / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def run(self, text: str) -> str:
        """Standard output of shell lines, each of which must succeed."""
        dropped = ("BESTIARY_PLUGINS", "PYTEST_ADDOPTS", "PYTEST_CURRENT_TEST")
        environment = {name: value for name, value in os.environ.items() if name not in dropped}
        environment |= {
            "PATH": f"{self._bin}{os.pathsep}{os.environ['PATH']}",
            "BESTIARY_HOME": str(self.work / "home"),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        command = ["bash", "-euo", "pipefail", "-c", text]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.work, env=environment, check=False)
        assert done.returncode == 0, f"{text}\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
        return done.stdout
