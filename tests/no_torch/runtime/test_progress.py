"""A search for livelock and starvation: whatever arrives, every request ends within a number of steps that is known."""

from __future__ import annotations

import random

import pytest
from canary import Engine

from bestiary.core.errors import EngineError
from bestiary.core.runtime.batch import Batch
from bestiary.core.runtime.cache_groups import CacheGroup
from bestiary.core.runtime.policies import PATIENCE
from bestiary.core.runtime.request import Request, State
from bestiary.core.runtime.scheduler import Scheduler

POOLS = {
    "one longest request": [CacheGroup(10, 4)],
    "block size 1": [CacheGroup(40, 1)],
    "two groups": [CacheGroup(11, 4), CacheGroup(9, 4, window=6)],
    "two sizes": [CacheGroup(14, 3), CacheGroup(8, 8, window=9)],
}


def adversary(seed, engine, arrivals):
    """What arrives: big and small ones, siblings, good and bad priorities; now and then somebody leaves."""
    rng = random.Random(seed)
    prompts = [[rng.randrange(50) for _ in range(39)] for _ in range(3)]
    while arrivals > 0:
        for _ in range(rng.randint(0, 3)):
            arrivals -= 1
            said = {"priority": rng.choice([-1, 0, 0, 3]), "streams": rng.random() < 0.3}
            prompt = rng.choice(prompts)[: rng.choice([1, 4, 8, 20, 30])]
            first = engine.submit(prompt, rng.choice([1, 4, 10]), **said)
            for _ in range(rng.choice([0, 0, 2])):
                engine.submit(prompt, 6, sibling=first, **said)
        live = [r for r in engine.requests if r.state is not State.FINISHED]
        if live and rng.random() < 0.1:
            engine.loop.abort(rng.choice(live))
        if engine.scheduler.running and rng.random() < 0.1:
            engine.scheduler._preempt(rng.choice(engine.scheduler.running))
        yield


def search(seed, groups, *, arrivals=60, **options):
    """Raise AssertionError if a request is not over in time."""
    engine = Engine(groups, batch=4, tokens=12, max_seq_len=40, pace=5, **options)
    for _ in adversary(seed, engine, arrivals):
        engine.loop.step()
    # Every step that is not spent on a victim's second computation ends some token of someone.
    most = sum(len(r.tokens) + r.max_length for r in engine.requests)
    engine.drain(most=most)
    engine.check_drained()
    assert all(r.finish_reason in ("length", "abort") for r in engine.requests)


@pytest.mark.parametrize("overlaps", [False, True], ids=["one by one", "ahead"])
@pytest.mark.parametrize("order", ["first-come", "priority"])
@pytest.mark.parametrize("capacity", ["no-evict", "max-utilization"])
@pytest.mark.parametrize("groups", POOLS.values(), ids=POOLS)
def test_every_request_ends(groups, capacity, order, overlaps):
    for seed in range(4):
        search(seed, groups, capacity=capacity, order=order, overlaps=overlaps)


@pytest.mark.parametrize("capacity", ["no-evict", "max-utilization"])
def test_a_stream_of_better_requests_lets_a_worse_one_through(capacity):
    engine = Engine([CacheGroup(10, 4)], batch=2, tokens=12, max_seq_len=40, order="priority", capacity=capacity)
    worst = engine.submit([1] * 20, 4, priority=1)
    others = 0
    while worst.state is not State.FINISHED:
        for _ in range(2):
            engine.submit([others % 50] * 4, 1, priority=0)
            others += 1
        engine.loop.step()
        assert others < PATIENCE + 200, "starved"


def waiting_too_long(engine):
    """Better ones keep coming, three to a step; whether one worse request ends."""
    worst = engine.submit([1] * 20, 4, priority=1)
    for turn in range(1200):
        for _ in range(3):
            engine.submit([turn % 50] * 4, 1, priority=0)
        engine.loop.step()
        if worst.state is State.FINISHED:
            return False
    return True


def test_the_search_finds_an_order_that_starves(monkeypatch):
    options = {"batch": 2, "tokens": 12, "max_seq_len": 40, "order": "priority"}
    assert not waiting_too_long(Engine([CacheGroup(10, 4)], **options))
    strict = Engine([CacheGroup(10, 4)], **options)
    strict.scheduler._admission._order = lambda priority, arrival: priority * 1e9 + arrival
    assert waiting_too_long(strict)


def find(groups=POOLS["one longest request"]):
    for seed in range(12):
        search(seed, groups, capacity="max-utilization", prefix_caching=False)


def test_prompts_that_hold_each_other_up_give_way(monkeypatch):
    """Were more admitted than fit, each would hold blocks that another needs."""

    def two():
        engine = Engine([CacheGroup(10, 4)], tokens=12, max_seq_len=40, order="priority", capacity="max-utilization")
        engine.submit([1] * 39, 1)
        engine.step()
        engine.step()
        better = engine.submit([2] * 39, 1, priority=-1)
        engine.scheduler.waiting.remove(better)
        engine.scheduler._enter(better, engine.scheduler.tables.match(better, engine.scheduler.number))
        return engine

    engine = two()
    engine.drain()
    assert [r.preemptions for r in engine.requests] == [1, 0]
    assert all(r.output == engine.expected(r) for r in engine.requests)
    monkeypatch.setattr(Scheduler, "_make_progress", lambda self, pack: None)
    with pytest.raises(EngineError, match="E-RUN-STALL"):
        two().drain()


def test_the_search_finds_a_victim_that_never_gets_ahead(monkeypatch):
    """The first gives way in every step, so that no prompt longer than a step is ever done."""

    def decide(self: Scheduler) -> Batch | None:
        if self.running:
            self._preempt(self.running[0])
        return real(self)

    real = Scheduler.decide
    monkeypatch.setattr(Scheduler, "decide", decide)
    with pytest.raises(AssertionError, match="remain"):
        find()


def test_the_search_finds_a_queue_that_forgets(monkeypatch):
    """A preempted request goes to the end of the queue, behind all who came later."""
    real = Scheduler._preempt

    def preempt(self: Scheduler, request: Request) -> None:
        real(self, request)
        self.waiting.remove(request)
        self._admission._arrivals += 1
        request.rank = self._admission._arrivals + 1e6
        self.waiting.add(request)

    monkeypatch.setattr(Scheduler, "_preempt", preempt)
    engine = Engine([CacheGroup(10, 4)], batch=2, tokens=12, max_seq_len=40, capacity="max-utilization")
    victim = engine.submit([1] * 20, 15)
    engine.loop.step()
    for turn in range(600):
        for _ in range(2):
            engine.submit([2 + turn % 50] * 4, 1)
        if victim.state is State.RUNNING and turn % 5 == 0:
            engine.scheduler._preempt(victim)
        engine.loop.step()
    assert victim.state is not State.FINISHED
