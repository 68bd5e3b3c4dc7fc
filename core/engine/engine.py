"""An engine's directory: ``engine.json``, the checkpoint's weights and tokenizer, and a plan for each kind of device."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bestiary.core.checkpoint.checkpoint import check_sizes
from bestiary.core.checkpoint.files import JSON_LIMIT, json_bytes, read_json
from bestiary.core.checkpoint.manifest import Manifest
from bestiary.core.engine.options import BuildOptions
from bestiary.core.errors import ConfigError, DataError, MissingInputError, PluginError
from bestiary.core.plugins import PluginHost
from bestiary.core.plugins.kinds import BUILDING

log = logging.getLogger("bestiary.engine")
NAME = "engine.json"
FORMAT = 1


@dataclass(frozen=True)
class EngineManifest:
    """What ``engine.json`` says: the checkpoint it was built from, the options, the plugins of which it was built."""

    checkpoint: Manifest
    options: BuildOptions
    lock: Mapping[str, str]

    @staticmethod
    def lock_of(host: PluginHost) -> dict[str, str]:
        """Distribution → version of what can take part in an engine: a tool that comes or goes leaves it as it is."""
        return host.lock(BUILDING)

    def check_lock(self, host: PluginHost) -> None:
        """Say where the plugins are not those of the build; refuse it of a host that is held to a lock (PluginError)."""
        now = self.lock_of(host)
        for name in sorted({*self.lock, *now}):
            found, expected = (versions.get(name, "nothing") for versions in (now, self.lock))
            if found == expected:
                continue
            if host.locked:
                hint = "install what it was built with, or build it again"
                problem = f"{NAME} locks another version of {name}"
                raise PluginError("E-PLG-LOCKED", "engine", problem, found=found, expected=expected, hint=hint)
            if name in self.lock:
                log.warning("engine was built with %s %s, found is %s", name, expected, found)

    def write(self, directory: Path) -> None:
        """Write ``engine.json``."""
        content = {
            "format": FORMAT,
            "checkpoint": self.checkpoint.model_dump(),
            "options": self.options.as_dict(),
            "lock": dict(self.lock),
        }
        (directory / NAME).write_bytes(json_bytes(content))

    @classmethod
    def read(cls, directory: Path) -> EngineManifest:
        """Read and check ``engine.json``, and that the files it lists are there.

        Raises:
            MissingInputError: the directory is no engine, or a file of it is missing.
            DataError: a field is damaged, or a newer bestiary wrote it.
        """
        if not is_engine(directory):
            raise MissingInputError(
                "E-ENGINE-MISSING",
                directory.name,
                "is not an engine",
                expected=NAME,
                hint="make one with: bestiary build CKPT OUT",
            )
        raw = read_json(directory, NAME, limit=JSON_LIMIT)
        number = raw.get("format")
        if number != FORMAT:
            raise DataError(
                "E-ENGINE-FORMAT",
                f"{NAME}, field format",
                "is not one this bestiary reads",
                found=repr(number),
                expected=str(FORMAT),
                hint="build the engine again",
            )
        for field in ("checkpoint", "options", "lock"):
            if not isinstance(raw.get(field), dict):
                raise DataError("E-ENGINE-MANIFEST", f"{NAME}, field {field}", "is missing or no object")
        manifest = Manifest.parse(raw["checkpoint"], NAME)
        check_sizes(directory, manifest, NAME)
        return cls(manifest, _options(raw["options"]), raw["lock"])


def is_engine(path: Path) -> bool:
    """Whether ``path`` is a directory with an ``engine.json``; nothing more is looked at."""
    return (path / NAME).is_file()


def plan_file(directory: Path, label: str, options: BuildOptions) -> Path:
    """Where the plan for a kind of device and degree of parallelism lies."""
    return directory / "plan" / f"{label}-tp{options.tensor_parallel}pp{options.pipeline_parallel}.json"


def _options(raw: Mapping[str, Any]) -> BuildOptions:
    try:
        return BuildOptions(**raw)
    except (TypeError, ConfigError) as error:
        raise DataError("E-ENGINE-MANIFEST", f"{NAME}, field options", f"is damaged: {error}") from None
