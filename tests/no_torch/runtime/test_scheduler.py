"""The scheduler's decisions, one at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
from canary import Engine, Recorder
from canary_numbers import alone, params, scores_alone

from bestiary.core.errors import EngineError, RequestError
from bestiary.core.runtime.cache_groups import CacheGroup
from bestiary.core.runtime.messages import SampleMessage
from bestiary.core.runtime.request import Request, State


@pytest.fixture(params=[False, True], ids=["one by one", "ahead"])
def overlaps(request):
    return request.param


def shape(engine, message):
    """Per sequence whose it is, where it begins, and its tokens; those with a row of logits."""
    owners = engine.scheduler.slots.requests
    names = [owners[slot].id for slot in message.slots.tolist()]
    rows = list(range(len(names))) if message.rows is None else message.rows.tolist()
    return list(zip(names, message.counts.tolist(), strict=True)), rows


def decide(engine):
    """Decide and run a step, and look at it before its results are taken in."""
    batch = engine.scheduler.decide()
    found = shape(engine, batch.message)
    engine.executor.forward(batch.message)
    scored = tuple(score.rows for score in batch.scores)
    pending = engine.executor.sample(SampleMessage(batch.slots, batch.rows, scored=scored))
    engine.scheduler.land(batch, pending.read().tokens)
    engine.check()
    return found


def test_a_step_mixes_decode_first_with_chunks_of_prompts():
    engine = Engine(tokens=8)
    engine.submit([1, 2], name="short")
    assert decide(engine) == ([("short", 2)], [1])
    engine.submit(list(range(10)), name="long")
    engine.submit([5], name="late")
    assert decide(engine) == ([("short", 1), ("long", 7)], [0])
    assert decide(engine) == ([("short", 1), ("long", 3), ("late", 1)], [0, 3, 4])


def test_prompt_logprobs_want_every_row_and_no_cached_block():
    engine = Engine()
    engine.submit(list(range(9)), 1, name="a")
    engine.drain()
    engine.submit(list(range(9)), 1, name="b", prompt_logprobs=0)
    assert decide(engine) == ([("b", 9)], list(range(9)))


def test_rows_of_logits_are_a_budget_of_their_own():
    engine = Engine(batch=2, max_rows=5)
    engine.submit(list(range(9)), 1, name="scored", prompt_logprobs=0)
    assert decide(engine) == ([("scored", 4)], [0, 1, 2, 3])
    assert decide(engine) == ([("scored", 4)], [0, 1, 2, 3])
    assert decide(engine) == ([("scored", 1)], [0])


def test_first_come_first_served_even_when_a_later_one_would_fit(overlaps):
    engine = Engine([CacheGroup(4, 4)], overlaps=overlaps)
    first, _, _ = engine.submit([1] * 8, 2), engine.submit([2] * 9, 4), engine.submit([3], 1)
    engine.step()
    assert engine.scheduler.running == [first]
    assert [r.id for r in engine.scheduler.waiting] == ["1", "2"]
    engine.drain()
    assert [r.finish_reason for r in engine.requests] == ["length"] * 3


def test_who_waits_behind_one_that_leaves_is_looked_at_in_the_next_step():
    engine = Engine([CacheGroup(6, 4)])
    engine.submit([1] * 5, 4)
    large, small = engine.submit([2] * 17, 4), engine.submit([3], 1)
    engine.step()
    engine.loop.abort(large)
    engine.step()
    assert small.finish_reason == "length"


def test_without_promises_a_block_for_each_that_runs_is_left_free():
    engine = Engine([CacheGroup(6, 4)], capacity="max-utilization")
    engine.submit([1] * 8, 6)
    engine.step()
    waits = engine.submit([2] * 12, 2)
    engine.step()
    assert list(engine.scheduler.waiting) == [waits]
    engine.drain()
    assert engine.scheduler.num_preemptions == 0


def test_steps_shrink_to_a_token_for_each_that_may_run():
    scheduler = Engine(batch=8, tokens=20).scheduler
    assert scheduler.limit.retreat() and scheduler.max_num_tokens == 10
    assert scheduler.limit.retreat() and scheduler.max_num_tokens == 8
    assert not scheduler.limit.retreat() and scheduler.max_num_tokens == 8


def test_steps_grow_again_after_good_ones():
    """C16: a shortage that lasts costs ever less, one that passes is over."""
    engine = Engine([CacheGroup(64, 4)], batch=2, tokens=64)
    scheduler = engine.scheduler
    engine.executor.faults, engine.executor.error = {1: "forward", 2: "forward"}, MemoryError
    first = engine.submit(list(range(60)), 2)
    engine.drain()
    assert first.finish_reason == "length" and scheduler.max_num_tokens == 16
    widths = []
    while scheduler.max_num_tokens < 64:
        engine.submit([1], 8)
        engine.drain()
        widths.append(scheduler.max_num_tokens)
    assert sorted(set(widths)) == [16, 32, 64] and 12 <= len(widths) <= 18
    for _ in range(200):
        scheduler.limit.good()
    assert scheduler.max_num_tokens == 64, "never more than configured"


def test_who_goes_on_for_another_takes_its_place_in_the_queue():
    """As the beams of a search do, each step of theirs anew."""
    engine = Engine(batch=1)
    first = engine.submit([1, 2, 3], 1)
    waiting = [engine.submit([token], 1) for token in (4, 5)]
    engine.step()
    onward = Request("onward", [1, 2, 3, 4], params(max_tokens=1), max_seq_len=64, follows=first)
    engine.loop.submit(onward, Recorder())
    assert list(engine.scheduler.waiting) == [onward, *waiting]
    engine.drain()


def test_what_can_never_fit_is_refused_with_the_arithmetic():
    engine = Engine([CacheGroup(4, 4)])
    with pytest.raises(
        RequestError, match=r"10 prompt \+ 8 output - 1 tokens = 5 blocks of 4 tokens, expected at most 4 b"
    ):
        engine.submit([1] * 10, 8)
    fits = engine.submit([1] * 10, 7)
    assert list(engine.scheduler.waiting) == [fits] and not engine.loop.idle
    windowed = Engine([CacheGroup(4, 4, window=12)], tokens=8)
    with pytest.raises(RequestError, match="of which a window of 12 and a chunk are held at once = 6 blocks"):
        windowed.submit([1] * 40, 40)


def test_blocks_before_a_window_are_let_go(overlaps):
    engine = Engine([CacheGroup(8, 4, window=6)], tokens=8, overlaps=overlaps)
    long = engine.submit([i % 7 for i in range(50)], 20)
    engine.drain(poison=True)
    assert long.output == engine.expected(long)


@pytest.mark.parametrize("state", ["waiting", "prefill", "decode", "finished"])
def test_abort_in_any_state_frees_everything(state, overlaps):
    engine = Engine(tokens=8, overlaps=overlaps)
    victim = engine.submit(list(range(12)), 3)
    for _ in range({"waiting": 0, "prefill": 1, "decode": 3, "finished": 9}[state]):
        engine.step()
    assert engine.loop.abort(victim) is (state != "finished")
    assert not engine.loop.abort(victim)
    assert victim.finish_reason == ("length" if state == "finished" else "abort")
    engine.check()
    assert engine.scheduler.tables.pools[0].num_used == 0
    engine.loop.step()
    engine.check_drained()


def test_results_of_a_request_ended_meanwhile_are_dropped():
    engine = Engine()
    victim = engine.submit([1, 2, 3])
    batch = engine.scheduler.decide()
    engine.executor.forward(batch.message)
    engine.scheduler.finish(victim, "abort")
    heir = engine.submit([4, 5, 6])
    engine.scheduler.decide()
    assert heir.state is State.RUNNING and engine.scheduler.slots.requests[batch.slots[0]] is heir
    assert engine.scheduler.land(batch, batch.slots * 0 + 5) == []
    assert victim.output == heir.output == []


def test_a_token_chosen_for_a_slots_earlier_stay_is_dropped(overlaps):
    """Preempted and back in the same slot: the step that was under way chose a token that is chosen anew."""
    engine = Engine(overlaps=overlaps)
    request = engine.submit([1, 2, 3], 6)
    engine.step()
    engine.step()
    engine.scheduler._preempt(request)
    engine.drain()
    assert request.output == engine.expected(request) and request.preemptions == 1


def test_a_first_token_is_told_once():
    """Preempted after it came, and again while it was computed anew."""
    engine = Engine(overlaps=True)
    request = engine.submit([1, 2, 3], 6, streams=True)
    while request.num_output < 1:
        engine.step()
    for _ in range(2):
        engine.scheduler._preempt(request)
        engine.step()
    engine.drain()
    answer = engine.answers[request.id]
    assert (answer.firsts, answer.tokens, request.preemptions) == (1, 6, 2)
    assert engine.loop.meters.prompt_tokens == 3


def test_prompt_scores_of_a_step_under_way_are_not_lost_when_it_is_repeated():
    """A longer chunk of the prompt is launched before the scores of a shorter one are read."""
    engine = Engine(batch=2, tokens=4, overlaps=True)
    engine.submit([9, 8], 1)
    scored = engine.submit([1, 2, 3, 4, 5], 2, prompt_logprobs=0)
    engine.step()
    engine.scheduler._preempt(scored)
    engine.drain()
    assert engine.answers[scored.id].scores == scores_alone(engine.groups, scored.prompt)
    assert scored.output == engine.expected(scored)


def test_a_window_holds_no_more_blocks_than_it_crosses():
    engine = Engine([CacheGroup(2, 16, window=5)], tokens=2)
    long = engine.submit([i % 9 for i in range(60)], 30)
    assert long.cap == (2,)
    engine.drain(poison=True)
    assert long.output == engine.expected(long)


@pytest.mark.parametrize(
    ("max_tokens", "ends", "reason"),
    [
        (9, "eos", "stop"),
        (9, "stop token", "stop"),
        (200, None, "length"),
        (3, None, "length"),
        (2, "eos", "length"),
        (3, "eos", "stop"),
    ],
    ids=["eos", "stop token", "context", "max tokens", "max tokens first", "both at once"],
)
def test_end_tokens_and_lengths_end_a_request(max_tokens, ends, reason, overlaps):
    engine = Engine([CacheGroup(64, 4)], max_seq_len=32, overlaps=overlaps)
    token = alone(engine.groups, [1, 2], 3)[2]
    made = engine.submit([1, 2], max_tokens, stop_token_ids=[token] if ends == "stop token" else None)
    if ends == "eos":
        engine.loop.abort(made)
        made = Request("eos", [1, 2], replace(made.params, end_token_ids=frozenset({token})), max_seq_len=32)
        engine.loop.submit(made, Recorder())
    engine.drain()
    assert (made.finish_reason, made.stop_reason) == (reason, token if ends == "stop token" else None)
    count = 3 if reason == "stop" else min(max_tokens, 30)
    assert made.output == alone(engine.groups, [1, 2], count)


def test_an_end_token_before_min_tokens_does_not_end():
    engine = Engine()
    token = alone(engine.groups, [1, 2], 3)[2]
    made = engine.submit([1, 2], 5, stop_token_ids=[token], min_tokens=3)
    engine.scheduler.decide()
    engine.scheduler.slots.tokens[made.slot, 2:5] = alone(engine.groups, [1, 2], 3)
    engine.scheduler.slots.known[made.slot] = 5
    slots = engine.scheduler._running.decoding()[:0]
    assert engine.scheduler._ended(slots, slots) == [] and made.num_output == 3
    import numpy as np

    assert engine.scheduler._ended(np.array([made.slot]), np.array([token])) == [] and made.state is State.RUNNING


def test_a_decode_is_never_held_up_by_prompts():
    """Every running answer gets its token in every step, whatever arrives."""
    engine = Engine([CacheGroup(400, 4)], batch=8, tokens=16, max_seq_len=512)
    answers = [engine.submit([i], 40) for i in range(4)]
    engine.step()
    engine.submit([7] * 300, 1)
    for count in range(2, 20):
        engine.step()
        assert [r.num_output for r in answers] == [count] * 4


def test_a_long_prompt_beside_a_stream_runs_in_small_chunks():
    engine = Engine([CacheGroup(400, 4)], batch=8, tokens=256, max_seq_len=512)
    engine.scheduler.pace.saw = lambda *args: None
    engine.submit([1], 40, streams=True)
    engine.step()
    engine.submit([7] * 300, 1)
    assert [m.num_tokens for m in engine.drain()][:3] == [17, 17, 17]
    engine.submit([1], 40)
    engine.step()
    engine.submit([8] * 300, 1)
    assert engine.step().num_tokens == 256


def test_accounting_errors_are_found():
    def broken(change, code="E-RUN-ACCOUNT"):
        engine = Engine()
        request = engine.submit(list(range(9)))
        engine.step()
        change(engine, request, engine.scheduler.tables.pools[0])
        with pytest.raises(EngineError, match=code):
            engine.scheduler.check()

    def twice(engine, request, pool):
        request.blocks[0][1] = request.blocks[0][0]

    def lost(engine, request, pool):
        pool._free.pop()

    def counted(engine, request, pool):
        pool.refs[request.blocks[0][0]] += 1

    def writable(engine, request, pool):
        engine.scheduler.slots.stored[request.slot] = 3

    def promised(engine, request, pool):
        engine.scheduler.tables._promised[0] -= 1

    for change in (twice, lost, counted, writable, promised):
        broken(change)
