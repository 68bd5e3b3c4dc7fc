"""The global options of one call of ``bestiary``, and the plugin host that they describe."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestiary.core import logs
from bestiary.core.errors import UsageError

if TYPE_CHECKING:
    from bestiary.core.plugins import PluginHost
    from bestiary.core.plugins.discover import Candidate


@dataclass(frozen=True)
class Session:
    """What the user said before the command's name."""

    plugins: tuple[str, ...] = ()
    strict: bool = False
    prefer: tuple[str, ...] = ()
    lock: Path | None = None

    @cached_property
    def preferences(self) -> dict[str, str]:
        """``--prefer NAME=DIST`` as a dict. Raises UsageError for another form."""
        return pairs("--prefer", self.prefer, "NAME=DIST")

    @cached_property
    def host(self) -> PluginHost:
        """The plugins, loaded when first asked for."""
        from bestiary.core.plugins import PluginHost

        self._see_here()
        return PluginHost.load(plugins=self.plugins, strict=self.strict, prefer=self.preferences, locked=self.lock)

    def candidates(self) -> tuple[Candidate, ...]:
        """What would be loaded; no plugin is imported."""
        from bestiary.core.plugins.select import choose

        self._see_here()
        choice = choose(self.plugins, self.preferences)
        return (*choice.chosen, *choice.demanded)

    def _see_here(self) -> None:
        if self.plugins and os.getcwd() not in sys.path:  # noqa: PTH109
            # -p is for modules that aren't installed, which usually lie here. Last, so that they shadow nothing.
            sys.path.append(os.getcwd())  # noqa: PTH109


def session_of(context: Any) -> Session:
    """The session of a typer context."""
    found = context.find_object(Session)
    assert isinstance(found, Session)
    return found


def pairs(option: str, texts: tuple[str, ...] | list[str], form: str) -> dict[str, str]:
    """``("a=b", …)`` as a dict.

    Raises:
        UsageError: an element of another form, or a name given twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not (separator and name and value):
            raise UsageError("E-CLI-PAIR", option, "not a pair", found=repr(text), expected=form)
        if name in found:
            raise UsageError("E-CLI-PAIR", option, f"{name!r} is given twice")
        found[name] = value
    return found


def set_logging(said: str | None) -> None:
    """Log to stderr as ``--log-level`` says, else ``BESTIARY_LOG``, else warnings.

    Raises:
        UsageError: an unknown level, or no pair.
    """
    text = said or os.environ.get(logs.VARIABLE) or logs.LogLevels.level
    logs.configure(logs.parse(text, "--log-level" if said else logs.VARIABLE))
