"""A rank's process: how it starts and ends, and the errors that tell of it. No torch."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bestiary.core import errors, logs
from bestiary.core.errors import BestiaryError, EngineError
from bestiary.core.runtime.rank_messages import Failed, codec
from bestiary.core.runtime.transport import Channel

log = logging.getLogger("bestiary.ranks")


@dataclass
class Rank:
    """A process with its end of the connection; ``facts``: what it says of itself once it has started."""

    label: str
    process: subprocess.Popen[bytes]
    channel: Channel
    facts: Mapping[str, Any] | None = None


def spawn(label: str, directory: str) -> Rank:
    """Start a rank's process; ``directory``: where the ranks meet."""
    near, far = socket.socketpair()
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    environment = {
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": loopback,
        **os.environ,
        **logs.inherited(),
        "PYTHONPATH": os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path),
    }
    with far:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "bestiary.core.runtime.rank_main", str(far.fileno()), directory],
            pass_fds=[far.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=2,  # what a library prints must not mix with the parent's output
            env=environment,
            start_new_session=True,  # Ctrl-C is for the parent, which ends its ranks itself
        )
    return Rank(label, process, Channel(near, codec()))


def end_all(ranks: list[Rank], directory: tempfile.TemporaryDirectory[str], owner: int) -> None:
    """Kill the ranks of the process ``owner`` and wait for them."""
    if os.getpid() != owner:
        return  # a forked process ends; its ranks are not this one's
    for rank in ranks:
        rank.process.kill()
    for rank in ranks:
        rank.process.wait()
        rank.channel.close()
    directory.cleanup()


def died(rank: Rank) -> EngineError:
    """The error of a rank that could say nothing any more."""
    try:
        status = rank.process.wait(1)
    except subprocess.TimeoutExpired:
        found = "it closed its connection"
    else:
        found = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    hint = "the system kills processes when memory is short" if found.endswith("SIGKILL") else None
    return EngineError("E-RUN-RANK", rank.label, "died", found=found, hint=hint)


def disordered(rank: Rank, found: int | None, expected: int | None, last: int) -> EngineError:
    """The error of an answer that is not the one that is waited for."""
    return EngineError(
        "E-RUN-ORDER",
        f"answer of {rank.label}",
        "is not the next one",
        found=f"that to number {found}",
        expected=f"none, with all up to number {last} answered" if expected is None else f"that to number {expected}",
        hint="an answer was lost or came twice: load the engine again",
    )


def late(waiting: Sequence[str], timeout: float) -> EngineError:
    """The error of ranks that do not start in time."""
    return EngineError(
        "E-RUN-START",
        ", ".join(waiting),
        "does not start" if len(waiting) == 1 else "do not start",
        found=f"nothing after {timeout:g} seconds",
        hint="one that hangs (a file system, a device, a plugin that waits) keeps the others waiting; if loading may take as "
        "long, give a larger start_timeout",
    )


def raised(rank: Rank, words: Failed, started: bool) -> BestiaryError:
    """The error that a rank told of: its own kind while it starts, an engine's afterwards."""
    log.error("%s failed:\n%s", rank.label, words.trace)
    kind = getattr(errors, words.kind, None) if words.parts else None
    if started or words.parts is None or kind is None:
        return EngineError("E-RUN-RANK", rank.label, f"failed: {words.text}")
    parts = words.parts
    made: BestiaryError = kind(
        parts["code"],
        f"{rank.label}: {parts['subject']}",
        parts["problem"],
        found=parts["found"],
        expected=parts["expected"],
        hint=parts["hint"],
    )
    return made
