"""An answer of a rank that was lost, came twice or came too early ends the engine, and none is taken for another."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

import numpy as np
import pytest

from bestiary.core.errors import EngineError
from bestiary.core.runtime import ranks
from bestiary.core.runtime.messages import EMPTY, SampledMessage, SampleMessage
from bestiary.core.runtime.rank_messages import Close, Numbered, Ready, codec
from bestiary.core.runtime.ranks import RankExecutor
from bestiary.core.runtime.transport import Channel


class Process:
    """What the executor does to a process, done to a thread that ends with its connection."""

    pid = 0

    def kill(self):
        pass

    def wait(self, timeout=None):
        return 0


class Host:
    def plugin_names(self):
        return ()

    preferences = lock = dict


@pytest.fixture
def start(monkeypatch):
    """An executor of one rank that, asked for the n-th time, answers the questions ``answers[n]``."""
    threads, made = [], []

    def rank(connection, answers):
        channel = Channel(connection, codec())
        with connection, suppress(EOFError, OSError):
            channel.receive()
            channel.send(Ready({}))
            numbers = []
            while not isinstance(message := channel.receive(), Close):
                numbers.append(message.number)
                for one in answers[len(numbers) - 1]:
                    channel.send(Numbered(numbers[one], SampledMessage(np.array([numbers[one]], np.int32))))

    def begin(*answers):
        def spawn(label, directory):
            near, far = socket.socketpair()
            threads.append(threading.Thread(target=rank, args=(far, answers)))
            threads[-1].start()
            return ranks.Rank(label, Process(), Channel(near, codec()))

        monkeypatch.setattr(ranks, "spawn", spawn)
        made.append(RankExecutor(tensor=1, stages=1, device="cpu", host=Host(), worker="", arguments={}))
        return made[0]

    yield begin
    for executor in made:
        executor.close()
    for thread in threads:
        thread.join()


def asked(executor):
    return executor.sample(SampleMessage(EMPTY))


def refused(act, found, expected):
    with pytest.raises(EngineError, match=f"rank 0 .*found {found}, expected {expected}") as caught:
        act()
    assert caught.value.code == "E-RUN-ORDER"


def test_answers_come_to_those_who_asked(start):
    executor = start([0], [], [1, 2])
    answers = [asked(executor) for _ in range(3)]
    assert [answer.read().tokens.tolist() for answer in reversed(answers)] == [[3], [2], [1]]


@pytest.mark.parametrize(
    ("answers", "found", "expected"),
    [
        pytest.param(([0, 0], [1], [2]), 1, 2, id="twice"),
        pytest.param(([0], [], [2]), 3, 2, id="lost"),
        pytest.param(([0], [], [2, 1]), 3, 2, id="swapped"),
    ],
)
def test_another_answer_ends_the_engine_before_anyone_gets_it(start, answers, found, expected):
    executor = start(*answers)
    assert asked(executor).read().tokens.tolist() == [1]
    waiting = []

    def go_on():
        waiting.append(asked(executor))
        waiting.append(asked(executor))
        waiting[0].read()

    refused(go_on, f"that to number {found}", f"that to number {expected}")
    assert all(answer.message is None for answer in waiting)
    assert executor.failure is not None
    refused(lambda: asked(executor), f"that to number {found}", f"that to number {expected}")


def test_an_answer_that_nobody_waits_for_ends_the_engine(start):
    executor = start([0, 0])
    asked(executor).read()
    refused(lambda: executor._look(None), "that to number 1", "none, with all up to number 1 answered")
