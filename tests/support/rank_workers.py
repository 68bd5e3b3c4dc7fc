"""Stand-ins for a rank's worker: no model, but real messages, real process groups and real deaths."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from bestiary import ConfigError
from bestiary.core.ops.collective import Place, all_reduce, receive, send
from bestiary.core.plugins import PluginHost
from bestiary.core.resolve_params import resolve
from bestiary.core.runtime.messages import EMPTY, Opened, SampledMessage, SampleMessage, StepMessage, TableChanges
from bestiary.core.runtime.ranks import RankExecutor
from bestiary.core.sampling_params import SamplingParams

log = logging.getLogger("bestiary.rank_workers")


class Answered:
    def __init__(self, tokens: torch.Tensor) -> None:
        self._tokens = tokens

    def read(self) -> SampledMessage:
        return SampledMessage(self._tokens.cpu().numpy().astype(np.int32), errors={0: "café"})


class Summing:
    """A step adds its tokens over the tensor-parallel ranks, the stages add the results up, the last one's are shared."""

    def __init__(self, place: Place, device: torch.device, host: PluginHost, dies: Mapping[str, Any]) -> None:
        log.debug("here")
        self.place, self.device, self.dies = place, device, dies
        self.facts = {
            "rank": place.rank,
            "least": place.least([place.rank + 5, 9 - place.rank], device),
            "device": str(device),
            "plugins": list(host.plugin_names()),
        }
        self.total = torch.zeros(0, device=device)

    def forward(self, step: StepMessage) -> None:
        if self.dies.get("rank") == self.place.rank and self.dies.get("step") == step.number:
            self._die()
        mine = torch.from_numpy(step.tokens).to(self.device).float() + self.place.rank
        before = receive(mine, (), torch.float32, self.place.stage)
        self.total = before + all_reduce(mine, self.place.tensor)
        send(self.total, self.place.stage)

    def sample(self, wanted: SampleMessage) -> Answered:
        tokens = self.total.long() if self.place.samples else torch.zeros_like(self.total).long()
        self.place.share(tokens)
        expected = torch.from_numpy(wanted.slots).to(self.device).long()
        if len(expected):
            assert torch.equal(tokens, expected), f"rank {self.place.rank} was told {tokens.tolist()}"
        return Answered(tokens)

    def _die(self) -> None:
        match self.dies["how"]:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                os._exit(3)
            case "sleep":
                time.sleep(600)
            case "raise":
                raise RuntimeError("the reactor is out of coolant")


def summing(*, place: Place, device: torch.device, host: PluginHost, **dies: Any) -> Summing:
    """The usual stand-in; ``rank``, ``step`` and ``how`` say who dies when and how."""
    return Summing(place, device, host, dies)


def refusing(*, place: Place, device: torch.device, host: PluginHost, rank: int) -> Summing:
    """One rank refuses to start while the others wait for it."""
    if place.rank == rank:
        raise ConfigError("E-KV-MEMORY", "kv_cache_memory", "is too small", found="1 byte", expected="2 bytes")
    return Summing(place, device, host, {})


class Idle:
    facts: Mapping[str, Any] = {}


def hanging(*, place: Place, device: torch.device, host: PluginHost, rank: int) -> Idle:
    """One rank never comes to its worker, and the others don't need it for theirs."""
    if place.rank == rank:
        time.sleep(1e6)
    return Idle()


def step(number: int, tokens: list[int]) -> StepMessage:
    """A step with something of everything that a message can hold."""
    params = resolve(SamplingParams(stop=["x"], logit_bias={5: 1.5}), vocab_size=96).for_ranks
    opened = Opened(0, 0, len(tokens), np.array(tokens, np.int32), params)
    tables = (TableChanges(EMPTY, EMPTY, EMPTY, EMPTY, EMPTY, EMPTY),)
    return StepMessage(number, EMPTY, EMPTY, 0, np.array(tokens, np.int32), None, (opened,), tables, len(tokens))


def check_three_steps(ranks: RankExecutor) -> None:
    """All ranks take part in every sum, every rank checks what it is told, and results come in whatever order is asked."""
    count = len(ranks.facts)
    answers = []
    for number in range(1, 4):
        tokens = list(range(number, number + 5))
        ranks.forward(step(number, tokens))
        expected = np.array([count * token + sum(range(count)) for token in tokens], np.int32)
        answers.append((ranks.sample(SampleMessage(expected)), expected))
    for answer, expected in reversed(answers):
        sampled = answer.read()
        assert np.array_equal(sampled.tokens, expected)
        assert sampled.errors == {0: "café"}
