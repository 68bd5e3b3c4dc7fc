"""What a rank's process does: load its share, run what it is told, answer, and end with its parent."""

from __future__ import annotations

import faulthandler
import os
import select
import shutil
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Mapping
from typing import Any, NoReturn, Protocol

from bestiary.core import logs
from bestiary.core.errors import BestiaryError, EngineError, PluginError
from bestiary.core.ops.collective import ALONE, Place, Ranks
from bestiary.core.runtime.messages import SampledMessage, SampleMessage, StepMessage
from bestiary.core.runtime.rank_messages import STACKS, Close, Failed, Numbered, Ready, Setup, codec
from bestiary.core.runtime.transport import Channel


class Pending(Protocol):
    """Results that a rank may still be making."""

    def read(self) -> SampledMessage:
        """Wait for them."""


class Worker(Protocol):
    """Runs one rank's share of each step.

    Attributes:
        facts: plain data for the driver: blocks of each cache group, …
    """

    @property
    def facts(self) -> Mapping[str, Any]: ...

    def forward(self, step: StepMessage) -> None:
        """Launch a step."""

    def sample(self, wanted: SampleMessage) -> Pending:
        """Launch the choice of tokens; every rank does it, the results of the place's speaker are read."""


def main() -> None:
    """Serve the parent at the other end of a socket. Arguments: its descriptor, the directory where the ranks meet."""
    connection, directory = socket.socket(fileno=int(sys.argv[1])), sys.argv[2]
    faulthandler.register(STACKS, all_threads=True)
    threading.Thread(target=_end_with, args=(connection, directory), daemon=True).start()
    channel = Channel(connection, codec())
    try:
        setup: Setup = channel.receive()
        worker, place = start(setup, directory)
        channel.send(Ready(worker.facts))
        serve(channel, worker, place)
        leave(place)
    except EOFError:
        _end_alone(directory)
    except BaseException as error:
        try:
            channel.send(last_words(error))
        except OSError:
            _end_alone(directory)
        os._exit(1)  # not sys.exit: other threads and the device must not keep a failed rank alive


def start(setup: Setup, directory: str) -> tuple[Worker, Place]:
    """Load the plugins, find the other ranks, make the worker."""
    import torch

    from bestiary.core import device as devices
    from bestiary.core.plugins import PluginHost, resolve

    count = setup.tensor * setup.stages
    levels = logs.parse(os.environ.get(logs.VARIABLE) or logs.LogLevels.level, logs.VARIABLE)
    logs.configure(levels, name=f"bestiary rank {setup.rank}")
    host = PluginHost.load(only=setup.plugins, prefer=setup.preferences)
    check_versions(setup.versions, host.lock())
    device = devices.of_rank(setup.device, setup.rank)
    if device.type == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // count))
    place = join(setup.rank, setup.tensor, setup.stages, devices.backend(device), directory)
    make = resolve(setup.worker, needed_by="a rank")
    return make(place=place, device=device, host=host, **setup.arguments), place


def check_versions(parents: Mapping[str, str], own: Mapping[str, str]) -> None:
    """Refuse distributions that are not the parent's (PluginError): it may have started before they were changed."""
    for name in sorted({*parents, *own}):
        found, expected = own.get(name, "nothing"), parents.get(name, "nothing")
        if found != expected:
            raise PluginError(
                "E-PLG-CHILD",
                f"distribution {name}",
                "is not the one that the parent process loaded",
                found=found,
                expected=expected,
                hint="it was installed anew after the parent had started: start that again",
            )


def join(rank: int, tensor: int, stages: int, backend: str, directory: str) -> Place:
    """Meet the other ranks in a directory of theirs; every process makes all groups, in one order."""
    import torch.distributed as dist

    if tensor * stages == 1:
        return Place()
    dist.init_process_group(
        backend, init_method=f"file://{directory}/rendezvous", rank=rank, world_size=tensor * stages
    )
    rows = [[stage * tensor + one for one in range(tensor)] for stage in range(stages)]
    columns = [[stage * tensor + one for stage in range(stages)] for one in range(tensor)]
    made = [[dist.new_group(members) if len(members) > 1 else None for members in groups] for groups in (rows, columns)]
    mine = Ranks(rank % tensor, tensor, made[0][rank // tensor]) if tensor > 1 else ALONE
    stage = Ranks(rank // tensor, stages, made[1][rank % tensor]) if stages > 1 else ALONE
    return Place(mine, stage, dist.group.WORLD)


def leave(place: Place) -> None:
    """Part from the other ranks."""
    if place.count > 1:
        import torch.distributed as dist

        dist.destroy_process_group()


def serve(channel: Channel, worker: Worker, place: Place) -> None:
    """Do what the parent says, until it says that it is over."""
    unread: deque[tuple[int, Pending]] = deque()
    expected = 0
    while True:
        # Whatever can be launched is launched before results are waited for.
        if unread and not channel.waiting():
            number, pending = unread.popleft()
            channel.send(Numbered(number, pending.read()))
            continue
        message = channel.receive()
        if isinstance(message, Close):
            return
        expected += 1
        told = _in_order(message, expected)
        if isinstance(told, StepMessage):
            worker.forward(told)
        else:
            pending = worker.sample(told)
            if place.rank == place.speaker:
                unread.append((expected, pending))


def _in_order(message: Any, expected: int) -> StepMessage | SampleMessage:
    number = message.number if isinstance(message, Numbered) else None
    if number != expected:
        raise EngineError(
            "E-RUN-ORDER",
            "message",
            "is not the next one",
            found=f"number {number}",
            expected=f"number {expected}",
            hint="a message was lost or came twice: load the engine again",
        )
    told: StepMessage | SampleMessage = message.message
    return told


def last_words(error: BaseException) -> Failed:
    """An exception as the parent is told of it."""
    parts = error.as_dict() if isinstance(error, BestiaryError) else None
    kind = type(error).__name__
    text = str(error) if parts else f"{kind}: {error}"
    return Failed(kind, text, parts, "".join(traceback.format_exception(error)), time.monotonic())


def _end_with(connection: socket.socket, directory: str) -> None:
    """End the process when the other side hangs up, be this process in a collective that will never finish."""
    poll = select.poll()
    poll.register(connection, getattr(select, "POLLRDHUP", 0))
    poll.poll()
    _end_alone(directory)


def _end_alone(directory: str) -> NoReturn:
    """The parent is gone: do what it would have done."""
    shutil.rmtree(directory, ignore_errors=True)
    os._exit(1)


if __name__ == "__main__":
    main()
