"""Logging: the levels, what ``--log-level`` and ``BESTIARY_LOG`` say, and where the lines go. No torch.

Everything logs below the logger ``bestiary``; the root logger is never touched.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TextIO

from bestiary.core.errors import UsageError

VARIABLE = "BESTIARY_LOG"
ROOT = "bestiary"

#: Below ``DEBUG``: every op call.
TRACE = 5
logging.addLevelName(TRACE, "TRACE")

LEVELS: Mapping[str, int] = {
    "trace": TRACE,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_FORM = "LEVEL[,MODULE=LEVEL…]"


@dataclass(frozen=True)
class LogLevels:
    """What is logged: the level of everything, and of those loggers that have another."""

    level: str = "warning"
    loggers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return ",".join([self.level, *(f"{name}={level}" for name, level in self.loggers.items())])


def parse(text: str, subject: str) -> LogLevels:
    """``debug``, ``warning,runtime=debug`` or ``bestiary.engine=trace``; a module is a logger below ``bestiary``.

    Raises:
        UsageError: an unknown level, no pair, or something said twice; naming ``subject``.
    """
    level: str | None = None
    loggers: dict[str, str] = {}
    for part in (one.strip() for one in text.split(",")):
        module, separator, name = (one.strip() for one in part.rpartition("="))
        if separator and not _NAME.fullmatch(module):
            raise UsageError("E-CLI-LOG", subject, "not a module and a level", found=repr(part), expected=_FORM)
        if name.lower() not in LEVELS:
            expected = ", ".join(LEVELS) + f", as {_FORM}"
            raise UsageError("E-CLI-LOG", subject, "unknown level", found=repr(name), expected=expected)
        logger = module if module == ROOT or module.startswith(f"{ROOT}.") else f"{ROOT}.{module}"
        known = level if not separator or logger == ROOT else loggers.get(logger)
        if known is not None:
            raise UsageError("E-CLI-LOG", subject, "has two levels for one thing", found=repr(text), expected=_FORM)
        if not separator or logger == ROOT:
            level = name.lower()
        else:
            loggers[logger] = name.lower()
    return LogLevels(level or LogLevels.level, loggers)


def configure(levels: LogLevels, *, name: str = ROOT, yields: bool = False) -> None:
    """Log to stderr at these levels, in place of what was configured here before.

    Args:
        name: what each line begins with.
        yields: print nothing while the program has handlers of its own that get the records.
    """
    root = logging.getLogger(ROOT)
    for handler in _ours(root):
        root.removeHandler(handler)
        for logger in handler.levels.loggers:
            logging.getLogger(logger).setLevel(logging.NOTSET)
    root.addHandler(_Stderr(levels, name, yields=yields))
    for logger, level in {**levels.loggers, ROOT: levels.level}.items():
        logging.getLogger(logger).setLevel(LEVELS[level])


def configure_library() -> None:
    """In a program that imports bestiary: what ``BESTIARY_LOG`` says, if it is set and nothing was configured before.

    Raises:
        UsageError: it says nothing that can be understood.
    """
    text = os.environ.get(VARIABLE)
    if text and not _ours(logging.getLogger(ROOT)):
        configure(parse(text, VARIABLE), yields=True)


def inherited() -> dict[str, str]:
    """The environment in which a child process logs as this one does."""
    ours = _ours(logging.getLogger(ROOT))
    return {VARIABLE: str(ours[0].levels)} if ours else {}


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what sys.stderr is at the time."""

    def __init__(self, levels: LogLevels, name: str, *, yields: bool) -> None:
        super().__init__(sys.stderr)
        self.levels, self._yields = levels, yields
        self.setFormatter(logging.Formatter(f"{name}: %(levelname)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)

    def filter(self, record: logging.LogRecord) -> bool:
        """Nothing that another handler prints too: the program may set up its logging after the model is made."""
        return not (self._yields and _others(record.name)) and bool(super().filter(record))


def _ours(logger: logging.Logger) -> list[_Stderr]:
    return [handler for handler in logger.handlers if isinstance(handler, _Stderr)]


def _others(name: str) -> bool:
    """Whether a record of this logger reaches a handler that is not ours."""
    logger: logging.Logger | None = logging.getLogger(name)
    while logger is not None:
        if len(logger.handlers) > len(_ours(logger)):
            return True
        logger = logger.parent if logger.propagate else None
    return False
