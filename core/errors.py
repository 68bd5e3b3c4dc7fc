"""One error type with a code. Every seam raises it; the command line turns it into one sentence and an exit status."""

from __future__ import annotations

import re

from bestiary.core.hints import HINTS

# The exit statuses of sysexits.h that bestiary uses, each with the class that carries it.
USAGE, BAD_DATA, MISSING_INPUT, UNAVAILABLE, INTERNAL, CANNOT_CREATE, IO_FAILED, BAD_CONFIG = (
    2,
    65,
    66,
    69,
    70,
    73,
    74,
    78,
)


_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+>")


def shown(value: object) -> str:
    """A found value for a message: its repr, cut to 80 characters; what has none, or shows an address, by its type."""
    if isinstance(value, int) and abs(value) >= 10**40:
        return f"an integer of {value.bit_length()} bits"
    try:
        text = repr(value)
    except Exception:  # it is the caller's, and whatever it raises is not what he is told about
        text = ""
    if not text or _ADDRESS.search(text):
        name = type(value).__name__
        return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
    return text if len(text) <= 80 else text[:77] + "…"


def printable(text: str) -> str:
    r"""``text`` with its lone surrogates escaped: no stream takes them, and in JSON the escape means the same.

    >>> printable("bad \ud800")
    'bad \\ud800'
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def said(error: BaseException) -> str:
    """The text of an exception as it can be printed. It may be a plugin's own class, so its ``__str__`` may raise."""
    try:
        return printable(str(error))
    except KeyboardInterrupt:
        raise
    except BaseException as second:
        return f"(its text can't be shown: {type(second).__name__})"


class BestiaryError(Exception):
    """Who and what field, the problem, what was found, what was expected, and what to do about it.

    Args:
        code: stable identifier such as ``E-CKPT-SHAPE``; scripts may match on it.
        subject: the file (relative), tensor, field, plugin or request that the error is about.
        problem: what is wrong, without a full stop.
        found, expected: the two sides of a failed check, already as text.
        hint: what the reader can do, as a sentence; by default what :mod:`bestiary.core.hints` has for the code.
    """

    exit_status = INTERNAL

    def __init__(
        self,
        code: str,
        subject: str,
        problem: str,
        *,
        found: str | None = None,
        expected: str | None = None,
        hint: str | None = None,
    ) -> None:
        # Some of it comes from files and plugins.
        self.code, self.subject, self.problem = code, printable(subject), printable(problem)
        self.found, self.expected, self.hint = (
            None if part is None else printable(part) for part in (found, expected, hint or HINTS.get(code))
        )
        text = f"{self.subject}: {self.problem}"
        if self.found is not None:
            text += f"; found {self.found}"
        if self.expected is not None:
            text += f", expected {self.expected}" if self.found is not None else f"; expected {self.expected}"
        if self.hint:
            text += f" ({self.hint})"
        super().__init__(f"{text} [{code}]")

    def as_dict(self) -> dict[str, str | None]:
        """The parts, for ``--json``."""
        names = ("code", "subject", "problem", "found", "expected", "hint")
        return {name: getattr(self, name) for name in names}


class UsageError(BestiaryError, ValueError):
    """A wrong option or argument."""

    exit_status = USAGE


class RequestError(UsageError):
    """A request that can't be served as asked: a bad sampling parameter, a prompt that is too long."""


class DataError(BestiaryError):
    """A file that is damaged or contradicts itself or its config."""

    exit_status = BAD_DATA


class MissingInputError(BestiaryError):
    """An input that is not there."""

    exit_status = MISSING_INPUT


class PluginError(BestiaryError):
    """A plugin, or a package a plugin needs, that is missing, broken or in conflict."""

    exit_status = UNAVAILABLE


class EngineError(BestiaryError):
    """The engine failed while running."""

    exit_status = INTERNAL


class OutputError(BestiaryError):
    """A target that can't be created."""

    exit_status = CANNOT_CREATE


class ReadWriteError(BestiaryError):
    """Reading or writing failed half way (a full disk, a bad sector)."""

    exit_status = IO_FAILED


class ConfigError(BestiaryError):
    """A config file or build option that is wrong or unsupported."""

    exit_status = BAD_CONFIG
