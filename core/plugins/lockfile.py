"""``bestiary.lock``: the plugin set with versions and code digests, and how what is installed now differs from it."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bestiary.core.errors import DataError, MissingInputError, PluginError
from bestiary.core.plugins.code import digest
from bestiary.core.plugins.discover import Candidate

NAME = "bestiary.lock"
VARIABLE = "BESTIARY_LOCKED"
FORMAT = 1
_LIMIT = 2**20  # bytes of a lock: thousands of distributions
_HEAD = """\
# The plugins that bestiary loads, with their code. Made by "bestiary lock", compared by "bestiary lock --check", and held to
# by "bestiary --locked". Keep it beside what depends on it.
"""


@dataclass(frozen=True)
class Locked:
    """One distribution in a lock: its version, its plugins' names, and the digest of its files."""

    version: str
    plugins: tuple[str, ...]
    digest: str


@dataclass(frozen=True)
class Drift:
    """One difference between a lock and what is installed: ``found`` and ``locked`` say the two sides.

    Args:
        kind: ``missing``, ``extra``, ``version``, ``plugins`` or ``code``.
    """

    distribution: str
    kind: str
    found: str
    locked: str

    def __str__(self) -> str:
        return f"{self.distribution}: found {self.found}, locked is {self.locked}"


def lock(candidates: Iterable[Candidate]) -> dict[str, Locked]:
    """What would be loaded, by distribution, sorted. Reads every file of every plugin; imports none."""
    gathered: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        gathered.setdefault(candidate.origin.distribution, []).append(candidate)
    return {
        name: Locked(ones[0].origin.version, tuple(sorted(one.name for one in ones)), digest(ones))
        for name, ones in sorted(gathered.items())
    }


def text(locked: Mapping[str, Locked]) -> str:
    """The file's content. JSON's strings are TOML's where they are ASCII."""
    lines = [_HEAD, f"format = {FORMAT}"]
    for name, one in locked.items():
        lines += ["", f"[distributions.{json.dumps(name)}]", f"version = {json.dumps(one.version)}"]
        lines += [f"plugins = {json.dumps(list(one.plugins))}", f"digest = {json.dumps(one.digest)}"]
    return "\n".join([*lines, ""])


def read(path: Path) -> dict[str, Locked]:
    """Read a lock.

    Raises:
        MissingInputError: there is none.
        DataError: it is damaged, or a newer bestiary wrote it.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_LIMIT + 1)
    except OSError as error:
        raise MissingInputError("E-LOCK-MISSING", path.name, f"can't be read: {error.strerror}") from error
    if len(raw) > _LIMIT:
        raise DataError("E-LOCK-FILE", path.name, "is too large", found=f"over {_LIMIT} bytes")
    try:
        content = tomllib.loads(raw.decode())
    except ValueError as error:
        raise DataError("E-LOCK-FILE", path.name, "is not TOML", found=f"{error}"[:200]) from error
    if content.get("format") != FORMAT:
        found = repr(content.get("format"))[:40]
        raise DataError("E-LOCK-FILE", f"{path.name}, field format", "is not known", found=found, expected=str(FORMAT))
    table = content.get("distributions")
    if not isinstance(table, dict):
        raise DataError("E-LOCK-FILE", f"{path.name}, field distributions", "is missing or no table")
    return {name: _entry(path, name, one) for name, one in sorted(table.items())}


def _entry(path: Path, name: str, one: Any) -> Locked:
    fields: dict[str, Any] = one if isinstance(one, dict) else {}
    version, plugins, code = (fields.get(field) for field in ("version", "plugins", "digest"))
    listed = isinstance(plugins, list) and all(isinstance(plugin, str) for plugin in plugins)
    if not (isinstance(version, str) and isinstance(code, str) and listed):
        expected = "a table with version, plugins and digest"
        raise DataError("E-LOCK-FILE", f"{path.name}, distribution {name}", "is incomplete", expected=expected)
    return Locked(version, tuple(plugins or ()), code)


def drift(locked: Mapping[str, Locked], now: Mapping[str, Locked]) -> tuple[Drift, ...]:
    """Every difference, by distribution; of one distribution the first that says most."""
    found = []
    for name in sorted({*locked, *now}):
        if name not in now:
            found.append(Drift(name, "missing", "nothing", locked[name].version))
        elif name not in locked:
            found.append(Drift(name, "extra", now[name].version, "nothing"))
        elif (difference := _difference(name, locked[name], now[name])) is not None:
            found.append(difference)
    return tuple(found)


def _difference(name: str, then: Locked, now: Locked) -> Drift | None:
    if now.version != then.version:
        return Drift(name, "version", now.version, then.version)
    if now.plugins != then.plugins:
        return Drift(name, "plugins", f"plugins {_list(now)}", f"plugins {_list(then)}")
    if now.digest != then.digest or not now.digest:
        return Drift(name, "code", f"{now.version} with code {_short(now)}", f"code {_short(then)}")
    return None


def from_environment() -> Path | None:
    """The file in ``BESTIARY_LOCKED``; None where that is not set or empty."""
    return Path(value) if (value := os.environ.get(VARIABLE)) else None


def refuse_drift(path: Path, candidates: Iterable[Candidate]) -> None:
    """Raises PluginError where what would be loaded is not what ``path`` lists, naming the distribution."""
    differences = drift(read(path), lock(candidates))
    if differences:
        first, many = differences[0], len(differences)
        raise PluginError(
            "E-PLG-LOCKED",
            f"distribution {first.distribution}",
            f"is not as {path.name} has it" + (f", the first of {many}" if many > 1 else ""),
            found=first.found,
            expected=first.locked,
        )


def _list(locked: Locked) -> str:
    return ", ".join(locked.plugins) or "none"


def _short(locked: Locked) -> str:
    return locked.digest[: len("sha256:") + 12] or "that can't be found"
