"""The scheduler's decisions, one at a time."""

from __future__ import annotations

import subprocess
import sys

import pytest
from canary import VOCAB, Canary, alone, params

from bestiary.core.errors import EngineError, RequestError
from bestiary.core.runtime.blocks import BlockPool
from bestiary.core.runtime.cache_groups import CacheGroup
from bestiary.core.runtime.request import Request, State
from bestiary.core.runtime.scheduler import Scheduler

POOL = (CacheGroup(32, 4),)


def make(groups=POOL, *, batch=8, tokens=64, **options):
    return Scheduler(list(groups), max_batch_size=batch, max_num_tokens=tokens, key=b"k", **options)


def request(name, prompt, max_tokens=4, max_seq_len=128, **said):
    return Request(name, prompt, params(max_tokens=max_tokens, **said), max_seq_len=max_seq_len)


def step(scheduler, canary):
    batch = scheduler.decide()
    rows = canary.run(batch)
    scheduler.apply(batch, [r[-1] if s.samples else None for s, r in zip(batch.segments, rows, strict=True)])
    scheduler.check()
    return batch


def drain(scheduler, canary):
    steps = []
    while not scheduler.idle:
        steps.append(step(scheduler, canary))
        assert len(steps) < 1000
    return steps


def shape(batch):
    return [(s.request.id, s.start, s.count, list(s.rows)) for s in batch.segments]


def test_the_runtime_imports_no_torch():
    modules = "cache_groups, request, batch, blocks, block_tables, scheduler, random_stream"
    code = f"import sys; from bestiary.core.runtime import {modules}; import bestiary.core.sampling_params, bestiary.core.outputs"
    found = subprocess.run(
        [sys.executable, "-c", code + "; print('torch' in sys.modules)"], capture_output=True, text=True
    )
    assert found.stdout.strip() == "False", found.stderr


def test_a_step_mixes_decode_first_with_chunks_of_prompts():
    scheduler, canary = make(tokens=8), Canary([CacheGroup(32, 4)])
    scheduler.submit(request("short", [1, 2]))
    assert shape(step(scheduler, canary)) == [("short", 0, 2, [1])]
    scheduler.submit(request("long", list(range(10))))
    scheduler.submit(request("late", [5]))
    assert shape(step(scheduler, canary)) == [("short", 2, 1, [0]), ("long", 0, 7, [])]
    assert shape(step(scheduler, canary)) == [("short", 3, 1, [0]), ("long", 7, 3, [2]), ("late", 0, 1, [0])]


def test_prompt_logprobs_want_every_row_and_no_cached_block():
    scheduler, canary = make(), Canary([CacheGroup(32, 4)])
    for name, scored in (("a", None), ("b", 0)):
        scheduler.submit(request(name, list(range(9)), max_tokens=1, prompt_logprobs=scored))
        last = drain(scheduler, canary)[-1]
    assert shape(last) == [("b", 0, 9, list(range(9)))]


def test_first_come_first_served_even_when_a_later_one_would_fit():
    scheduler, canary = make([CacheGroup(4, 4)]), Canary([CacheGroup(4, 4)])
    first, big, small = request("a", [1] * 8, 2), request("b", [2] * 9, 4), request("c", [3], 1)
    for each in (first, big, small):
        scheduler.submit(each)
    assert [s.request.id for s in step(scheduler, canary).segments] == ["a"]
    assert [r.id for r in scheduler.waiting] == ["b", "c"]
    drain(scheduler, canary)
    assert [r.finish_reason for r in (first, big, small)] == ["length"] * 3


def test_what_can_never_fit_is_refused_with_the_arithmetic():
    scheduler = make([CacheGroup(4, 4)])
    with pytest.raises(
        RequestError, match=r"10 prompt \+ 8 output - 1 tokens = 5 blocks of 4 tokens, expected at most 4 b"
    ):
        scheduler.submit(request("big", [1] * 10, 8))
    scheduler.submit(request("fits", [1] * 10, 7))
    assert [r.id for r in scheduler.waiting] == ["fits"]


def test_a_prefix_is_reused_up_to_the_last_prompt_token():
    scheduler, canary = make(), Canary([CacheGroup(32, 4)])
    for prompt, cached in ((8, 0), (8, 4), (9, 8), (12, 8)):
        again = request(f"{prompt}-{cached}", list(range(prompt)), 1)
        scheduler.submit(again)
        drain(scheduler, canary)
        assert again.num_cached == cached
        assert again.output == alone(canary.groups, again.prompt, 1)


def test_output_blocks_are_reused_by_the_next_turn():
    scheduler, canary = make(), Canary([CacheGroup(32, 4)])
    first = request("turn 1", list(range(6)), 8)
    scheduler.submit(first)
    drain(scheduler, canary)
    second = request("turn 2", [*first.tokens, 1, 2, 3], 2)
    scheduler.submit(second)
    drain(scheduler, canary)
    assert second.num_cached == 12 and second.output == alone(canary.groups, second.prompt, 2)


def test_reset_forgets_prefixes_and_running_requests_offer_none():
    scheduler, canary = make(), Canary([CacheGroup(32, 4)])
    running = request("running", list(range(9)), 6)
    scheduler.submit(running)
    step(scheduler, canary)
    scheduler.reset_prefix_cache()
    later = request("later", list(range(9)), 6)
    scheduler.submit(later)
    drain(scheduler, canary)
    assert later.num_cached == 0 and running.output == later.output
    assert request("x", []).state is State.WAITING


def test_a_hit_is_the_longest_prefix_that_every_group_still_has():
    groups = [CacheGroup(32, 4), CacheGroup(12, 4, window=6)]
    scheduler, canary = make(groups), Canary(groups)
    first = request("first", list(range(40)), 1)
    scheduler.submit(first)
    drain(scheduler, canary)
    assert scheduler.tables.pools[1].num_used == 0
    whole = request("whole", list(range(40)), 3)
    scheduler.submit(whole)
    drain(scheduler, canary)
    assert whole.num_cached == 36 and whole.output == alone(groups, whole.prompt, 3)
    # Other requests push the window's blocks out while the other group still has the prefix.
    scheduler.tables.pools[1].reset()
    again = request("again", list(range(40)), 3)
    scheduler.submit(again)
    drain(scheduler, canary)
    assert again.num_cached == 0 and again.output == whole.output


def test_blocks_before_a_window_are_let_go():
    groups = [CacheGroup(8, 4, window=6)]
    scheduler, canary = make(groups, tokens=8), Canary(groups)
    long = request("long", list(range(50)), 20)
    scheduler.submit(long)
    drain(scheduler, canary)
    assert long.output == alone(groups, long.prompt, 20)


@pytest.mark.parametrize("state", ["waiting", "prefill", "decode", "finished"])
def test_abort_in_any_state_frees_everything(state):
    scheduler, canary = make(tokens=8), Canary([CacheGroup(32, 4)])
    victim = request("victim", list(range(12)), 3)
    scheduler.submit(victim)
    for _ in range({"waiting": 0, "prefill": 1, "decode": 2, "finished": 9}[state]):
        step(scheduler, canary)
    assert scheduler.finish(victim, "abort") is (state != "finished")
    assert not scheduler.finish(victim, "abort")
    scheduler.check()
    assert scheduler.idle and scheduler.tables.pools[0].num_used == 0
    assert victim.finish_reason == ("length" if state == "finished" else "abort")


def test_results_of_a_request_ended_meanwhile_are_dropped():
    scheduler, canary = make(), Canary([CacheGroup(32, 4)])
    victim = request("victim", [1, 2, 3])
    scheduler.submit(victim)
    batch = scheduler.decide()
    canary.run(batch)
    scheduler.finish(victim, "abort")
    assert scheduler.apply(batch, [5]) == [] and victim.output == []
    scheduler.check()


def test_end_tokens_and_the_context_end_a_request():
    scheduler = make()
    cases = {
        "eos": (request("eos", [1], 9), 7, "stop", None),
        "stop token": (request("stop token", [1], 9, stop_token_ids=[7]), 7, "stop", 7),
        "context": (request("context", [1] * 5, 9, max_seq_len=6), 8, "length", None),
        "max tokens": (request("max tokens", [1], 1), 8, "length", None),
    }
    from dataclasses import replace

    eos = cases["eos"][0]
    eos.params = replace(eos.params, end_token_ids=frozenset({7}))
    for each, *_ in cases.values():
        scheduler.submit(each)
    batch = scheduler.decide()
    scheduler.apply(batch, [token for _, token, *_ in cases.values()])
    for each, _, reason, stop in cases.values():
        assert (each.finish_reason, each.stop_reason) == (reason, stop), each


def test_a_forced_hash_collision_is_never_served(monkeypatch):
    monkeypatch.setattr(BlockPool, "_key", lambda self, parent, tokens: b"same")
    groups = [CacheGroup(32, 2), CacheGroup(32, 2, window=3)]
    scheduler, canary = make(groups), Canary(groups)
    prompts = [[1, 1, 1, 1, 1], [2, 2, 1, 1, 1], [1, 1, 2, 2, 1], [1, 1, 1, 1, 2]]
    for turn, prompt in enumerate(prompts * 2):
        each = request(str(turn), prompt, 3)
        scheduler.submit(each)
        drain(scheduler, canary)
        assert each.output == alone(groups, prompt, 3), prompt


def test_a_reused_tail_is_checked_against_its_whole_prefix():
    pool = BlockPool(4, 2, key=b"k")
    first = pool.find(None, [1, 1])
    second = pool.find(first, [2, 2])
    other = pool.find(None, [9, 9])
    other.key = first.key
    pool.register(second, pool.take())
    assert pool.find(first, [2, 2]) is second
    assert pool.find(pool.find(None, [1, 1]), [2, 2]) is second, "an equal prefix computed anew is the same prefix"
    assert pool.find(other, [2, 2]) is not second


def test_the_least_recently_used_prefix_is_evicted_first():
    scheduler, canary = make([CacheGroup(6, 4)]), Canary([CacheGroup(6, 4)])
    for name, token in (("a", 1), ("b", 2), ("a again", 1), ("c", 3)):
        scheduler.submit(request(name, [token] * 9, 1))
        drain(scheduler, canary)
    kept_a, kept_b = request("a", [1] * 9, 1), request("b", [2] * 9, 1)
    assert scheduler.tables.match(kept_a).length > scheduler.tables.match(kept_b).length


def test_an_empty_pool_says_so():
    pool = BlockPool(1, 4)
    pool.take()
    with pytest.raises(EngineError, match="no block is left"):
        pool.take()


def test_accounting_errors_are_found():
    scheduler, canary = make(), Canary([CacheGroup(32, 4)])
    scheduler.submit(request("a", list(range(9))))
    step(scheduler, canary)
    scheduler.tables.pools[0].refs[3] += 1
    with pytest.raises(EngineError, match="E-RUN-ACCOUNT"):
        scheduler.check()


def test_tokens_of_the_canary_stay_in_its_vocabulary():
    assert all(0 <= token < VOCAB for token in alone([CacheGroup(1, 1)], [1, 2], 50))
