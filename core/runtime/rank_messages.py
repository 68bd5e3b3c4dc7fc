"""What an executor and the processes of its ranks tell each other besides steps."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from bestiary.core.runtime import messages
from bestiary.core.runtime.transport import Codec
from bestiary.core.token_params import TokenParams

#: The signal at which a rank writes the stacks of its threads to stderr, be it in a kernel that never returns.
STACKS: Final = signal.SIGUSR1


@dataclass(frozen=True)
class Setup:
    """The first message to a rank: who it is, what to load and what to run.

    Args:
        rank: among all; ``tensor`` ranks in each of ``stages`` pipeline stages.
        device: ``auto``, ``cpu`` or ``cuda``.
        plugins, preferences, versions: the parent's, by ``PluginHost.plugin_names``, ``preferences`` and ``lock``.
        worker: import string of what makes the rank's worker, ``(place, device, host, **arguments) -> Worker``.
        arguments: plain data.
    """

    rank: int
    tensor: int
    stages: int
    device: str
    plugins: tuple[str, ...]
    preferences: Mapping[str, str]
    versions: Mapping[str, str]
    worker: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Ready:
    """A rank's first answer, with what its worker says of itself."""

    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Failed:
    """A rank's last words: the exception, by its class and the parts of a BestiaryError, and when it was caught."""

    kind: str
    text: str
    parts: Mapping[str, str | None] | None
    trace: str
    at: float


@dataclass(frozen=True)
class Numbered:
    """A step or a choice of tokens, numbered from 1: a rank that misses one, or gets one twice, must not go on.

    Its results bear the number of what they answer: neither may the executor.
    """

    number: int
    message: Any


@dataclass(frozen=True)
class Close:
    """Asks a rank to end."""


def codec() -> Codec:
    """Of everything that goes between an executor and its ranks."""
    steps = [cls for cls in vars(messages).values() if isinstance(cls, type) and cls.__module__ == messages.__name__]
    return Codec([*steps, TokenParams, Setup, Ready, Failed, Numbered, Close])
