"""Random programs of submit, step, abort, reset: the accounting holds, and every answer is the one of an undisturbed run."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from canary import VOCAB, Canary, alone, params
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bestiary.core.errors import RequestError
from bestiary.core.runtime.cache_groups import CacheGroup
from bestiary.core.runtime.request import Request, State
from bestiary.core.runtime.scheduler import Scheduler

MAX_SEQ_LEN = 40
# Prompts are beginnings of few texts, so that prefixes meet often.
TEXTS = [[(7 * i * i + 3 * kind + (i > 9) * kind) % VOCAB for i in range(MAX_SEQ_LEN)] for kind in range(2)]


@st.composite
def cache_groups(draw: st.DrawFn) -> list[CacheGroup]:
    size = draw(st.sampled_from([1, 2, 4, 8]))
    groups = [CacheGroup(draw(st.integers(40 // size, 70 // size + 2)), size)]
    if draw(st.booleans()):
        other, window = draw(st.sampled_from([size, size, 4])), draw(st.integers(2, 12))
        groups.append(CacheGroup(draw(st.integers(24 // other, 60 // other + 2)), other, window))
    return draw(st.permutations(groups))


class Programs(RuleBasedStateMachine):
    @initialize(
        groups=cache_groups(),
        batch=st.integers(1, 5),
        tokens=st.integers(1, 24),
        caching=st.booleans(),
    )
    def start(self, groups: list[CacheGroup], batch: int, tokens: int, caching: bool) -> None:
        self.groups, self.canary = groups, Canary(groups)
        self.scheduler = Scheduler(
            groups, max_batch_size=batch, max_num_tokens=tokens, prefix_caching=caching, key=b"k"
        )
        self.requests: list[Request] = []
        self.batch_size, self.max_tokens = batch, tokens

    @rule(
        text=st.sampled_from(TEXTS),
        prompt=st.sampled_from([1, 2, 3, 8, 8, 16, 16, 17, 24, 24, 32, MAX_SEQ_LEN - 1]),
        output=st.integers(1, 12),
        scored=st.integers(0, 5).map(lambda n: 0 if n == 0 else None),
    )
    def submit(self, text: list[int], prompt: int, output: int, scored: int | None) -> None:
        settings_ = params(max_tokens=output, prompt_logprobs=scored)
        request = Request(str(len(self.requests)), text[:prompt], settings_, max_seq_len=MAX_SEQ_LEN)
        try:
            self.scheduler.submit(request)
        except RequestError:
            caps = self.scheduler.tables.caps(request)
            assert any(cap > group.num_blocks for cap, group in zip(caps, self.groups, strict=True))
            return
        self.requests.append(request)

    @rule(count=st.integers(1, 8))
    def steps(self, count: int) -> None:
        for _ in range(count):
            self.step()

    def step(self) -> None:
        queue = list(self.scheduler.waiting)
        batch = self.scheduler.decide()
        self.scheduler.check()
        assert bool(batch.segments) != self.scheduler.idle
        assert batch.num_tokens <= self.max_tokens and len(self.scheduler.running) <= self.batch_size
        assert list(self.scheduler.waiting) == queue[len(queue) - len(self.scheduler.waiting) :], (
            "not first come first served"
        )
        rows = self.canary.run(batch)
        tokens = [found[-1] if s.samples else None for s, found in zip(batch.segments, rows, strict=True)]
        for segment in batch.segments:
            assert segment.request.num_cached < segment.request.prompt_length, "no prompt token was left to compute"
        for ended in self.scheduler.apply(batch, tokens):
            assert ended.state is State.FINISHED and ended.finish_reason == "length"

    @precondition(lambda self: any(r.state is not State.FINISHED for r in self.requests))
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        live = [r for r in self.requests if r.state is not State.FINISHED]
        request = data.draw(st.sampled_from(live))
        assert self.scheduler.finish(request, "abort")
        assert not self.scheduler.finish(request, "abort"), "a request ended twice"

    @rule()
    def reset(self) -> None:
        self.scheduler.reset_prefix_cache()
        assert all(pool.num_idle == 0 for pool in self.scheduler.tables.pools)

    @invariant()
    def accounts(self) -> None:
        if hasattr(self, "scheduler"):
            self.scheduler.check()

    @invariant()
    def answers(self) -> None:
        for request in getattr(self, "requests", ()):
            if request.finish_reason == "length" and len(request.tokens) > request.prompt_length:
                expected = alone(self.groups, request.prompt, request.max_length - request.prompt_length)
                assert request.output == expected, f"{request} read a wrong slot"
                request.finish_reason = "stop"  # checked once

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for _ in range(2000):
            if self.scheduler.idle:
                break
            self.step()
        assert self.scheduler.idle, "requests never ended"
        self.answers()
        self.scheduler.check()
        assert all(pool.num_used == 0 for pool in self.scheduler.tables.pools)
        assert self.scheduler.tables._promised == [0] * len(self.groups)


TestPrograms = pytest.mark.filterwarnings("error")(Programs.TestCase)
TestPrograms.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
