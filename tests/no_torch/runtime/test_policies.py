"""What the policies decide: who runs next, and who gives way."""

from __future__ import annotations

import pytest
from canary import Engine

from bestiary.core.errors import ConfigError
from bestiary.core.runtime import policies
from bestiary.core.runtime.cache_groups import CacheGroup


@pytest.fixture(params=[False, True], ids=["one by one", "ahead"])
def overlaps(request):
    return request.param


def test_the_policies_are_named():
    with pytest.raises(ConfigError, match="no-evict or max-utilization"):
        Engine(capacity="fair")
    with pytest.raises(ConfigError, match="first-come or priority"):
        Engine(order="random")
    assert [policies.by_priority(1, 0), policies.by_priority(0, 300)] == [256, 300]


def test_priorities_run_sooner_and_ties_by_arrival():
    engine = Engine(batch=1, order="priority")
    for priority in (0, 5, -1, 5, 0):
        engine.submit([1, 2], 1, priority=priority)
    ended = []
    while not engine.loop.idle:
        ended += [r.id for r in engine.loop.step()]
    assert ended == ["2", "0", "4", "1", "3"]


def test_without_promises_the_last_gives_way_and_is_computed_anew(overlaps):
    engine = Engine([CacheGroup(9, 4)], capacity="max-utilization", overlaps=overlaps)
    first, second = engine.submit(list(range(8)), 24), engine.submit(list(range(50, 58)), 24)
    engine.drain(poison=True)
    assert first.preemptions == 0 and second.preemptions >= 1
    assert [r.output for r in (first, second)] == [engine.expected(r) for r in (first, second)]
    assert engine.scheduler.num_preemptions == second.preemptions
    engine.check_drained()


def test_with_promises_nobody_is_preempted(overlaps):
    engine = Engine([CacheGroup(9, 4)], overlaps=overlaps)
    for i in range(6):
        engine.submit([i * 50 + j for j in range(8)], 20)
    engine.drain(poison=True)
    assert engine.scheduler.num_preemptions == 0
    assert all(r.output == engine.expected(r) for r in engine.requests)


@pytest.mark.parametrize(
    ("capacity", "blocks"), [("no-evict", (40, 100)), ("no-evict", (200, 40)), ("max-utilization", (40, 100))]
)
def test_a_prompt_that_waits_costs_the_steps_of_others_nothing(monkeypatch, capacity, blocks):
    """What a window leaves behind is no room in a group that lacks it, nor a promise less, so the prompt is not looked up
    again for it."""
    whole, window = blocks
    engine = Engine([CacheGroup(whole, 4), CacheGroup(window, 4, window=6)], max_seq_len=160, capacity=capacity)
    for prompt in range(4):
        engine.submit([prompt] * (4 + prompt), 24)
    engine.step()
    looked = []
    match = engine.scheduler.tables.match
    monkeypatch.setattr(engine.scheduler.tables, "match", lambda *given: looked.append(given) or match(*given))
    last = engine.submit(range(156), 2)
    for _ in range(20):
        engine.step()
    assert len(looked) == 1 and last.num_cached is None
    engine.drain()
    assert last.output == engine.expected(last)
    engine.check_drained()


def test_what_a_window_leaves_behind_lets_a_prompt_in_that_waits_for_it():
    engine = Engine([CacheGroup(40, 4), CacheGroup(7, 4, window=6)], tokens=16, capacity="max-utilization")
    first = engine.submit(range(14), 40)
    engine.step()
    second = engine.submit(range(50, 61), 2)
    engine.step()
    assert second.num_cached is None
    while second.num_cached is None:
        engine.step()
    assert first.num_output < 12 and first.preemptions == 0
    engine.drain()
    assert [one.output for one in (first, second)] == [engine.expected(one) for one in (first, second)]
