"""What of a failure stays with the request whose own code raised it."""

from __future__ import annotations


def contained(error: BaseException) -> BaseException:
    """The error, if it ends one request; Ctrl-C ends more and is raised again.

    A processor or a callback may raise what is no ``Exception`` (``SystemExit``, a cancellation, ``GeneratorExit``): that
    is its own failure, and must not end the engine's thread.
    """
    if isinstance(error, KeyboardInterrupt):
        raise error
    return error


def cause(error: BaseException) -> str:
    """The error as a request's ``stop_reason``."""
    return f"{type(error).__name__}: {error}"
