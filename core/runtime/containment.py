"""What of a failure stays with the request whose own code raised it."""

from __future__ import annotations

from bestiary.core.errors import BestiaryError


class PluginFailure(Exception):
    """A plugin's code failed in what it did for one request: ``plugin`` names both, and what it raised is the cause."""

    def __init__(self, plugin: str, found: str) -> None:
        super().__init__(f"{plugin}: {found}")


def contained(error: BaseException) -> BaseException:
    """The error, if it ends one request; Ctrl-C ends more and is raised again.

    A processor or a callback may raise what is no ``Exception`` (``SystemExit``, a cancellation, ``GeneratorExit``): that
    is its own failure, and must not end the engine's thread.
    """
    if isinstance(error, KeyboardInterrupt):
        raise error
    return error


def cause(error: BaseException) -> str:
    """The error as a request's ``stop_reason``: errors of the project's own say all that there is to say."""
    return str(error) if isinstance(error, BestiaryError | PluginFailure) else f"{type(error).__name__}: {error}"
