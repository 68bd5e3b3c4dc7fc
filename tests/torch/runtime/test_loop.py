"""The loop end to end on the canary: what surrounds a request never changes its answer."""

from __future__ import annotations

import random

import pytest
import torch
from canary import VOCAB, Canary, alone, params

from bestiary.core.answer import TextAnswer
from bestiary.core.errors import EngineError
from bestiary.core.runtime.cache_groups import CacheGroup
from bestiary.core.runtime.loop import EngineLoop
from bestiary.core.runtime.request import Request, State
from bestiary.core.runtime.scheduler import Scheduler

ONE = [CacheGroup(512, 16)]
TWO = [CacheGroup(512, 16), CacheGroup(400, 16, window=24)]


class CanaryRunner:
    """Logits with their only peak at the canary's token."""

    def __init__(self, groups):
        self.canary, self.steps, self.break_at = Canary(groups), 0, None

    def forward(self, batch):
        self.steps += 1
        if self.steps == self.break_at:
            raise RuntimeError("a kernel failed")
        tokens = [token for row in self.canary.run(batch) for token in row]
        return torch.nn.functional.one_hot(torch.tensor(tokens, dtype=torch.int64), VOCAB).float() * 50


def make(groups=ONE, *, batch=64, tokens=256, **options):
    runner = CanaryRunner(groups)
    return EngineLoop(runner, Scheduler(groups, max_batch_size=batch, max_num_tokens=tokens, **options)), runner


def submit(loop, name, prompt, answer=None, **said):
    request = Request(name, prompt, params(**said), max_seq_len=512)
    answer = answer or TextAnswer(request, None, None)
    loop.submit(request, answer)
    return request, answer


def mixed(count=32):
    rng = random.Random(5)
    shared = [rng.randrange(VOCAB) for _ in range(120)]
    for i in range(count):
        own = [rng.randrange(VOCAB) for _ in range(rng.randint(1, 200))]
        prompt = (shared[: rng.randint(1, 120)] + own)[:200] if i % 2 else own
        yield prompt, rng.randint(1, 64), 0.0 if i % 3 else 1.0


@pytest.mark.parametrize("caching", [True, False], ids=["prefix-cache", "no-prefix-cache"])
@pytest.mark.parametrize(
    ("groups", "tokens", "waits"),
    [
        (ONE, 8192, False),
        (ONE, 256, True),
        ([CacheGroup(20, 16)], 8192, True),
        (TWO, 64, True),
        ([CacheGroup(17, 16), CacheGroup(9, 16, window=24)], 64, True),
        ([CacheGroup(300, 1)], 2048, True),
    ],
    ids=["roomy", "chunked", "requests-wait", "two-groups", "two-groups-wait", "block-size-1"],
)
def test_32_mixed_requests_give_what_each_gives_alone(groups, tokens, waits, caching):
    loop, runner = make(groups, tokens=tokens, prefix_caching=caching)
    done = [submit(loop, str(i), p, max_tokens=n, temperature=t) for i, (p, n, t) in enumerate(mixed())]
    seen = 0
    while not loop.idle:
        loop.step()
        if runner.steps % 8 == 0:
            loop.scheduler.check()
        seen = max(seen, len(loop.scheduler.waiting))
    assert (seen > 0) == waits
    for request, answer in done:
        expected = alone(groups, request.prompt, request.max_length - request.prompt_length)
        assert answer.output().outputs[0].token_ids == expected
        assert request.finish_reason == "length"
    if not caching or (waits and len(groups) == 1):
        assert any(request.num_cached for request, _ in done) == caching
    stored = sum(len(request.tokens) - 1 - request.num_cached for request, _ in done)
    assert runner.canary.writes == stored * len(groups), "a slot was written twice, or not at all"
    assert all(pool.num_used == 0 for pool in loop.scheduler.tables.pools)


def test_every_request_ends_exactly_once():
    loop, _ = make(batch=3)
    requests = [submit(loop, str(i), [i + 1] * 9, max_tokens=5)[0] for i in range(6)]
    ended = loop.step() + loop.step()
    assert loop.abort(requests[1]) and not loop.abort(requests[1])
    ended += [requests[1], *loop.drain()]
    assert sorted(r.id for r in ended) == [str(i) for i in range(6)]
    assert requests[1].finish_reason == "abort" and not loop.abort(requests[0])


def test_a_second_request_of_one_id_is_refused():
    loop, _ = make()
    submit(loop, "same", [1])
    with pytest.raises(EngineError, match="E-RUN-ID"):
        submit(loop, "same", [2])


class Failing(TextAnswer):
    def __init__(self, request, where):
        super().__init__(request, None, None)
        self.where, self.watches = where, True

    def _maybe(self, place):
        if place == self.where:
            raise ValueError("no such piece")

    def first_token(self, now):
        self._maybe("first_token")
        super().first_token(now)

    def prompt_scored(self, entries):
        self._maybe("prompt_scored")
        super().prompt_scored(entries)

    def added(self, logprobs):
        if self.request.num_output == 2:
            self._maybe("added")
        return super().added(logprobs)

    def end(self, now):
        super().end(now)
        self._maybe("end")


@pytest.mark.parametrize("where", ["first_token", "prompt_scored", "added", "end"])
def test_a_failure_in_one_request_ends_only_that_one(where):
    loop, _ = make(ONE)
    others = [submit(loop, f"other {i}", [i, 2, 3], max_tokens=4)[0] for i in range(3)]
    victim = Request("victim", [4, 5, 6], params(max_tokens=4, prompt_logprobs=0), max_seq_len=64)
    loop.submit(victim, Failing(victim, where))
    ended = loop.drain()
    assert sorted(r.id for r in ended) == sorted(["victim", *(r.id for r in others)])
    assert (victim.finish_reason, victim.stop_reason) == ("error", "ValueError: no such piece")
    assert all(r.output == alone(ONE, r.prompt, 4) for r in others)
    loop.scheduler.check()


def test_a_failing_forward_ends_the_requests_of_that_step():
    loop, runner = make(batch=2)
    requests = [submit(loop, str(i), [i + 1] * 5, max_tokens=3)[0] for i in range(3)]
    runner.break_at = 2
    loop.step()
    with pytest.raises(EngineError, match="RuntimeError: a kernel failed"):
        loop.step()
    assert [r.finish_reason for r in requests] == ["error", "error", None]
    loop.drain()
    assert requests[2].output == alone(ONE, requests[2].prompt, 3)
    assert loop.scheduler.tables.pools[0].num_used == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")], ids=["nan", "inf", "minus-inf"])
@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "drawn"])
def test_unusable_logits_end_that_request_alone(bad, temperature):
    loop, runner = make()
    good = submit(loop, "good", [1, 2], max_tokens=3, temperature=temperature)[0]
    victim = submit(loop, "victim", [3, 4], max_tokens=3, temperature=temperature)[0]
    forward = runner.forward

    def poisoned(batch):
        logits = forward(batch)
        if len(logits) == 2:
            logits[1] = bad
        return logits

    runner.forward = poisoned
    ended = loop.drain()
    assert len(ended) == 2 and victim.state is State.FINISHED
    assert victim.finish_reason == "error" and str(victim.stop_reason).startswith("numerical_error")
    assert good.output == alone(ONE, good.prompt, 3)


def test_first_token_time_and_counts_are_reported():
    loop, _ = make()
    _, answer = submit(loop, "a", [1] * 40, max_tokens=2)
    assert answer.output().metrics.time_to_first_token is None and not answer.output().finished
    loop.drain()
    out = answer.output()
    assert out.finished and out.metrics.time_to_first_token >= 0
    _, again = submit(loop, "b", [1] * 40, max_tokens=2)
    loop.drain()
    assert again.output().num_cached_tokens == 32 and again.output().outputs[0] == out.outputs[0]
