"""The global options of one call of ``bestiary``, and the plugin host that they describe."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from bestiary.core.errors import UsageError

if TYPE_CHECKING:
    from bestiary.core.plugins import PluginHost
    from bestiary.core.plugins.discover import Candidate

LEVELS = ("debug", "info", "warning", "error")


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
        name, separator, value = text.rpartition("=")
        if not (separator and name and value):
            raise UsageError("E-CLI-PAIR", option, "not a pair", found=repr(text), expected=form)
        if name in found:
            raise UsageError("E-CLI-PAIR", option, f"{name!r} is given twice")
        found[name] = value
    return found


def set_logging(level: str | None) -> None:
    """Log to stderr at ``--log-level``, else ``BESTIARY_LOG``, else warnings.

    Raises:
        UsageError: an unknown level.
    """
    chosen = level or os.environ.get("BESTIARY_LOG") or "warning"
    if chosen.lower() not in LEVELS:
        subject = "--log-level" if level else "BESTIARY_LOG"
        raise UsageError("E-CLI-LOG", subject, "unknown level", found=repr(chosen), expected=", ".join(LEVELS))
    logger = logging.getLogger("bestiary")
    for handler in list(logger.handlers):
        if isinstance(handler, _Stderr):
            logger.removeHandler(handler)
    logger.addHandler(_Stderr())
    logger.setLevel(chosen.upper())


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what sys.stderr is when a command begins."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(logging.Formatter("bestiary: %(levelname)s: %(message)s"))
