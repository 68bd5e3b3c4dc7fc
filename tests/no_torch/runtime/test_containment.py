"""What goes wrong in one request, or in one step, ends what it concerns and nothing else; everyone is told once."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from canary import Engine, Recorder
from canary_numbers import VOCAB, scores_alone

from bestiary.core.errors import EngineError
from bestiary.core.runtime.cache_groups import CacheGroup
from bestiary.core.runtime.request import State

GROUPS = [CacheGroup(200, 4)]


@pytest.fixture(params=[False, True], ids=["one by one", "ahead"])
def overlaps(request):
    return request.param


def load(engine, count=64, **said):
    """Mixed requests, most of them with a shared beginning, some of them read along."""
    rng = random.Random(3)
    shared = [rng.randrange(VOCAB) for _ in range(20)]
    for i in range(count):
        own = [rng.randrange(VOCAB) for _ in range(rng.randint(1, 12))]
        engine.submit([*shared[: rng.choice([0, 8, 20])], *own], rng.randint(1, 16), streams=i % 3 == 0, **said)
    return list(engine.requests)


def undisturbed(engine, requests):
    for request in requests:
        assert (request.finish_reason, request.output) == ("length", engine.expected(request)), request


@pytest.mark.parametrize("method", ["first_token", "prompt_scored", "added", "end"])
def test_an_exception_in_an_answer_ends_that_request_only(method, overlaps):
    engine = Engine(GROUPS, batch=64, overlaps=overlaps)
    others = load(engine, 63)
    victim = engine.submit([4, 5, 6], 4, prompt_logprobs=0, answer=Recorder(watches=True, fails=method))
    engine.drain(poison=True)
    assert (victim.finish_reason, victim.stop_reason) == ("error", "ValueError: no such piece")
    undisturbed(engine, others)
    engine.check_drained()
    assert engine.loop.meters.finished["length"] == 63 and engine.loop.meters.finished["error"] == 1


@pytest.mark.parametrize("method", ["first_token", "prompt_scored", "added", "end"])
def test_an_interrupt_in_an_answer_is_everyones(method, overlaps):
    class Interrupted(Recorder):
        def _maybe(self, called):
            if called == method:
                raise KeyboardInterrupt

    engine = Engine(GROUPS, overlaps=overlaps)
    engine.submit([4, 5, 6], 4, prompt_logprobs=0, answer=Interrupted(watches=True))
    with pytest.raises(KeyboardInterrupt):
        engine.drain()


def test_random_aborts_disturb_nobody(overlaps):
    """C01: 30 % leave, at any moment of their lives."""
    engine = Engine(GROUPS, batch=16, overlaps=overlaps)
    everyone = load(engine)
    rng = random.Random(7)
    leaving = set(rng.sample([r.id for r in everyone], 20))
    for _ in range(400):
        if engine.loop.idle:
            break
        live = [r for r in everyone if r.id in leaving and r.state is not State.FINISHED]
        if live and rng.random() < 0.5:
            engine.loop.abort(rng.choice(live))
        engine.step(poison=True)
    undisturbed(engine, [r for r in everyone if r.finish_reason != "abort"])
    assert sum(r.finish_reason == "abort" for r in everyone) > 5
    engine.check_drained()


def test_an_abort_frees_its_blocks_within_two_steps(overlaps):
    engine = Engine(GROUPS, overlaps=overlaps)
    victim, other = engine.submit(list(range(40)), 40), engine.submit([1, 2], 60)
    for _ in range(5):
        engine.step()
    pool = engine.scheduler.tables.pools[0]
    before = pool.num_used
    engine.loop.abort(victim)
    for _ in range(2):
        engine.step()
    assert before - pool.num_used >= 9 and pool.num_used == len(other.blocks[0])


def test_preemption_every_few_steps_changes_no_answer(overlaps):
    """C03."""
    engine = Engine([CacheGroup(14, 4)], batch=16, overlaps=overlaps, capacity="max-utilization")
    everyone = load(engine, 32)
    engine.drain(poison=True)
    undisturbed(engine, everyone)
    assert engine.scheduler.num_preemptions > 5
    engine.check_drained()


def test_a_failing_forward_ends_the_requests_of_that_step(overlaps):
    """C07: the engine goes on, with those that were waiting and with new ones."""
    engine = Engine(GROUPS, batch=8, overlaps=overlaps, broken=[4])
    everyone = load(engine, 24)
    engine.drain(poison=True)
    failed = [r for r in everyone if r.finish_reason == "error"]
    assert 1 <= len(failed) <= 8 and {r.stop_reason for r in failed} == {"RuntimeError: a kernel failed"}
    undisturbed(engine, [r for r in everyone if r not in failed])
    again = [engine.submit(r.prompt, 5) for r in failed]
    engine.drain(poison=True)
    undisturbed(engine, again)
    engine.check_drained()


def test_tokens_of_the_step_before_a_failing_one_are_kept():
    engine = Engine(GROUPS, overlaps=True, broken=[3])
    victim = engine.submit([1, 2, 3], 9)
    expected = engine.expected(victim)
    engine.drain()
    assert victim.finish_reason == "error" and victim.output == expected[:2]


def test_a_step_repeated_for_lack_of_memory_finds_nothing_of_the_one_that_failed(overlaps):
    engine = Engine(GROUPS, overlaps=overlaps)
    request, forward = engine.submit(list(range(30)), 9), engine.executor.forward

    def failing(step):
        engine.executor.forward = forward
        raise MemoryError

    engine.executor.forward = failing
    engine.step()
    assert engine.scheduler.tables.pools[0].num_cached == 0
    engine.drain()
    undisturbed(engine, [request])
    engine.check_drained()


def test_what_a_failed_step_stored_is_neither_cached_nor_left_behind(overlaps):
    engine = Engine(GROUPS, tokens=8, overlaps=overlaps)
    victim, forward, blocks = engine.submit(list(range(30)), 9), engine.executor.forward, []

    def failing(step):
        if step.number == 3:
            blocks.extend(victim.blocks[0])
            raise RuntimeError("a kernel failed")
        forward(step)

    engine.executor.forward = failing
    engine.drain()
    assert victim.finish_reason == "error" and len(blocks) == 6
    assert engine.scheduler.tables.pools[0].num_cached == 4, "what the steps before it stored is sound"
    again = engine.submit(list(range(30)), 1)
    steps = engine.drain()
    assert {block for change in steps[0].tables for block in change.scrubbed.tolist()} == set(blocks[4:])
    assert again.num_cached == 16
    undisturbed(engine, [again])


def test_what_a_failed_step_was_to_scrub_is_scrubbed_by_the_next(overlaps):
    """A step that can't be sent scrubs nothing: what is due stays due."""
    engine = Engine(GROUPS, tokens=16, overlaps=overlaps, broken=[3, 4])
    first = engine.submit(list(range(60)), 9)  # the third step fills the blocks 8 to 11
    while first.state is not State.FINISHED:
        engine.step()
    second = engine.submit([1], 1)  # its step, the fourth, had the scrubs, and one of the blocks
    engine.drain()
    assert second.stop_reason == "RuntimeError: a kernel failed"
    third = engine.submit([1], 1)
    steps = engine.drain()
    undisturbed(engine, [third])
    assert {8, 9, 10, 11} <= {block for change in steps[0].tables for block in change.scrubbed.tolist()}


def corrupt(engine, request, value):
    """What the request's first key is on the rank from now on."""
    engine.executor.catch_up()
    engine.executor.rank.keys[0][request.blocks[0][-1], 0] = value


def test_broken_numbers_end_that_request_alone(overlaps):
    """C19: no token, so an error; its blocks are neither cached nor left as they are."""
    engine = Engine(GROUPS, batch=64, overlaps=overlaps)
    others = load(engine, 63)
    victim = engine.submit(list(range(100, 130)), 12)
    while victim.num_output < 3:
        engine.step()
    corrupt(engine, victim, math.nan)
    engine.drain()
    assert engine.loop.meters.output_tokens == sum(request.num_output for request in engine.requests)
    assert victim.finish_reason == "error" and victim.stop_reason.startswith("numerical_error")
    undisturbed(engine, others)
    again = engine.submit(victim.prompt, 12)
    engine.drain()
    assert again.num_cached == 29, "what its own good tokens have shown to be sound"
    undisturbed(engine, [again])
    engine.check_drained()


def breaks_on(engine, token):
    """Logits of a prompt that ends with this token are broken, and so are its keys, as a model that overflows gives them."""
    forward = engine.executor.rank.forward

    def broken(step):
        forward(step)
        if token in step.tokens.tolist():
            rank, at = engine.executor.rank, list(np.cumsum(step.counts) - 1)
            for row, slot in enumerate(step.slots.tolist()):
                given = step.tokens[at[row] - step.counts[row] + 1 - step.decodes : at[row] + 1 - step.decodes]
                if row >= step.decodes and token in given.tolist():
                    end = int(rank.stored[slot])
                    block = rank.tables[0][slot, (end - 1) // 4]
                    rank.keys[0][block, (end - 1) % 4] = rank.sums[row] = math.nan

    engine.executor.rank.forward = broken


def test_a_request_with_broken_numbers_of_its_own_leaves_the_prefix_of_the_others_alone(overlaps):
    engine = Engine(GROUPS, overlaps=overlaps)
    breaks_on(engine, 4000)
    prompt = list(range(20))
    first = engine.submit(prompt, 4)
    engine.drain()
    victim = engine.submit([*prompt, 1, 2, 3, 4000], 4)
    engine.drain(poison=True)
    assert victim.finish_reason == "error" and victim.stop_reason.startswith("numerical_error")
    assert victim.num_cached == 20 and victim.preemptions == 1, "computed again without what it had taken over"
    later = engine.submit([*prompt, 1, 2, 3, 4], 4)
    engine.drain(poison=True)
    assert later.num_cached == 20
    undisturbed(engine, [first, later])
    engine.check_drained()


def test_who_stands_on_broken_numbers_of_another_is_computed_again(overlaps):
    """They share the step that writes the block, so that both rows are broken; only one of them is to blame."""
    engine = Engine(GROUPS, overlaps=overlaps)
    breaks_on(engine, 4000)
    victim = engine.submit([*range(7), 4000], 4)
    forward, rank = engine.executor.rank.forward, engine.executor.rank

    def first_step(step):
        forward(step)
        if step.number == 1:
            rank.sums = [math.nan] * len(rank.sums)

    rank.forward = first_step
    sharing = [engine.submit([*range(4), own, 9], 4) for own in (50, 51)]
    engine.step()
    assert [request.num_cached for request in sharing] == [4, 4]
    engine.drain(poison=True)
    assert victim.finish_reason == "error"
    undisturbed(engine, sharing)
    engine.check_drained()


def test_a_known_prefix_that_breaks_ends_nobody_who_takes_it_over(overlaps):
    engine = Engine(GROUPS, overlaps=overlaps)
    first = engine.submit(list(range(20)), 4)
    engine.step()
    block = first.blocks[0][0]
    engine.drain()
    engine.executor.rank.keys[0][block, 1] = math.nan
    later = engine.submit([*range(16), 78], 9)
    engine.drain(poison=True)
    assert (later.num_cached, later.preemptions) == (16, 1)
    last = engine.submit([*range(16), 79], 9)
    engine.drain(poison=True)
    assert (last.num_cached, last.cache_miss, last.preemptions) == (0, "evicted", 0)
    undisturbed(engine, [first, later, last])
    engine.check_drained()


def test_a_failing_read_ends_that_steps_requests(overlaps):
    engine = Engine(GROUPS, batch=4, overlaps=overlaps)
    everyone = load(engine, 12)
    sample = engine.executor.sample

    def failing(wanted):
        pending = sample(wanted)
        if len(engine.executor.steps) == 3:
            read = pending.read
            pending.read = lambda: (read(), 1 / 0)
        return pending

    engine.executor.sample = failing
    engine.drain()
    failed = [r for r in everyone if r.finish_reason == "error"]
    assert failed and {r.stop_reason for r in failed} == {"ZeroDivisionError: division by zero"}
    undisturbed(engine, [r for r in everyone if r not in failed])
    engine.check_drained()


def test_nobody_goes_on_from_what_a_step_stored_whose_results_cannot_be_read():
    """The next step is under way by then, with requests that took over what the failed one stored."""
    engine = Engine(GROUPS, overlaps=True)
    engine.looks = False
    engine.executor.faults[1] = "read"
    victim = engine.submit(list(range(20)), 4)
    engine.step()
    sharing = engine.submit([*range(16), 99, 98], 4)
    copying = engine.submit([*range(18), 97], 4)
    engine.step()
    assert (sharing.num_cached, copying.num_cached) == (16, 18)
    engine.drain(poison=True)
    assert (victim.finish_reason, victim.stop_reason) == ("error", "RuntimeError: the read failed")
    later = [engine.submit([*request.prompt, *request.output[:3], 5], 4) for request in (sharing, copying)]
    engine.drain(poison=True)
    undisturbed(engine, [sharing, copying, *later])
    assert [request.preemptions for request in (sharing, copying)] == [1, 1]
    engine.check_drained()


@pytest.mark.parametrize("leaves", ["abort", "preempt", "window"])
def test_what_was_given_back_before_its_step_failed_is_offered_to_nobody(leaves):
    groups = [CacheGroup(40, 4, window=5 if leaves == "window" else None)]
    engine = Engine(groups, tokens=16, overlaps=True)
    engine.looks = False
    engine.executor.faults[3 if leaves == "window" else 1] = "read"
    victim = engine.submit(list(range(40 if leaves == "window" else 15)), 9)
    engine.step()
    if leaves == "abort":
        engine.loop.abort(victim)
    elif leaves == "preempt":
        engine.scheduler._preempt(victim)
    else:
        engine.step()
        engine.step()
    others = [engine.submit([*victim.prompt[:-length], 77], 4) for length in (1, 6)]
    engine.drain(poison=True)
    undisturbed(engine, others if leaves != "preempt" else [*others, victim])
    assert victim.finish_reason == {"abort": "abort", "preempt": "length", "window": "error"}[leaves]
    engine.check_drained()


def test_what_the_steps_before_a_failed_read_stored_is_kept():
    engine = Engine(GROUPS, tokens=8, overlaps=True)
    engine.executor.faults[5] = "read"
    victim = engine.submit(list(range(40)), 4)
    engine.drain()
    assert victim.finish_reason == "error"
    again = engine.submit(list(range(40)), 4)
    engine.drain(poison=True)
    assert again.num_cached == 32
    undisturbed(engine, [again])


def test_a_read_that_fails_for_want_of_memory_is_repeated_with_its_scores(overlaps):
    engine = Engine(GROUPS, batch=2, tokens=8, overlaps=overlaps)
    engine.executor.faults[2], engine.executor.error = "read", MemoryError
    scored = engine.submit(list(range(30)), 4, prompt_logprobs=0)
    other = engine.submit(list(range(50, 60)), 4)
    engine.drain(poison=True)
    undisturbed(engine, [scored, other])
    assert engine.answers[scored.id].scores == scores_alone(GROUPS, scored.prompt)


def test_a_failing_choice_ends_that_steps_requests(overlaps):
    engine = Engine(GROUPS, batch=4, overlaps=overlaps)
    everyone = load(engine, 12)
    sample = engine.executor.sample
    engine.executor.sample = lambda wanted: 1 / 0 if len(engine.executor.steps) == 3 else sample(wanted)
    engine.drain()
    failed = [r for r in everyone if r.finish_reason == "error"]
    assert failed and {r.stop_reason for r in failed} == {"ZeroDivisionError: division by zero"}
    undisturbed(engine, [r for r in everyone if r not in failed])
    engine.check_drained()


@pytest.mark.parametrize("where", ["forward", "sample", "read"])
def test_a_dead_executor_ends_everything_and_refuses_new_work(where, overlaps):
    engine = Engine(GROUPS, batch=4, overlaps=overlaps)
    everyone = load(engine, 12)
    engine.step()
    engine.step()

    def die(*args):
        engine.executor.failure = EngineError("E-RUN-RANK", "rank 1", "is gone", found="signal 9")
        raise ConnectionError("closed")

    if where == "read":
        real = engine.executor.sample

        def sample(wanted):
            pending = real(wanted)
            pending.read = die
            return pending

        engine.executor.sample = sample
    else:
        setattr(engine.executor, where, die)
    with pytest.raises(EngineError, match="rank 1: is gone; found signal 9"):
        for _ in range(3):
            engine.loop.step()
    assert engine.loop.idle
    over = [r for r in everyone if r.finish_reason != "length"]
    assert all("ConnectionError" in r.stop_reason or "rank 1: is gone" in r.stop_reason for r in over)
    with pytest.raises(EngineError, match="takes no requests any more; found rank 1: is gone") as refused:
        engine.submit([1])
    assert refused.value.code == "E-RUN-DEAD" and isinstance(refused.value.__cause__, EngineError)
    assert all(answer.ends == 1 for answer in engine.answers.values())


def test_log_probabilities_are_asked_for_requests_that_still_run():
    """One that ends while its next step runs is in that step still; no rank can make log-probabilities of no rows."""
    engine = Engine(GROUPS, overlaps=True)
    first, neighbour = engine.submit([1, 2], 9, logprobs=1), engine.submit([3, 4], 9)
    asked, sample = [], engine.executor.sample

    def seen(wanted):
        asked.append(None if wanted.logprobs is None else wanted.logprobs.tolist())
        return sample(wanted)

    engine.executor.sample = seen
    engine.step()
    engine.step()
    land = engine.scheduler.land
    engine.scheduler.land = lambda *given: [*land(*given), *([first] if engine.scheduler.finish(first, "stop") else [])]
    engine.drain()
    undisturbed(engine, [neighbour])
    assert asked[:2] == [[1, -1], [1, -1]] and len(asked) > 5 and not any(asked[2:]), asked


@pytest.mark.parametrize("where", ["match", "lacks", "admit", "share", "reuse", "take", "room"])
@pytest.mark.parametrize("capacity", ["no-evict", "max-utilization"])
def test_what_fails_while_a_request_is_admitted_ends_that_one(where, capacity, overlaps):
    """C09: wherever it fails, all is as it was before; blocks, promises, slots and tables are checked after each step."""
    engine = Engine([CacheGroup(60, 4), CacheGroup(60, 4, window=6)], overlaps=overlaps, capacity=capacity)
    first = engine.submit(list(range(11)), 9)
    while first.num_output < 2:
        engine.step()
    victim, other = engine.submit([*range(10), 98], 4), engine.submit([*range(10), 99], 4)
    tables = engine.scheduler.tables
    outer = where if hasattr(tables, where) else "admit"
    real = getattr(tables, outer)

    def failing(request, *given, **said):
        if request is victim and where == outer:
            raise ZeroDivisionError
        if request is victim:
            setattr(tables.pools[1], where, lambda *given: 1 / 0)
        try:
            return real(request, *given, **said)
        finally:
            vars(tables.pools[1]).pop(where, None)

    setattr(tables, outer, failing)
    engine.drain(poison=True)
    assert victim.finish_reason == "error" and victim.stop_reason.startswith("ZeroDivisionError")
    undisturbed(engine, [first, other])
    engine.check_drained()


def test_a_scheduler_that_breaks_ends_the_engine_and_tells_everyone(overlaps):
    """Nobody can say what state it is in, so nothing goes on; but nobody waits for ever either."""
    engine = Engine(GROUPS, batch=4, overlaps=overlaps)
    everyone = load(engine, 12)
    engine.step()
    engine.scheduler.decide = lambda: 1 / 0
    with pytest.raises(EngineError, match="ZeroDivisionError"):
        engine.loop.step()
    assert engine.loop.idle and all(r.finish_reason in ("error", "length") for r in everyone)
    assert all(answer.ends == 1 for answer in engine.answers.values())
    with pytest.raises(EngineError, match="takes no requests any more"):
        engine.submit([1])


def test_a_second_request_of_one_id_is_refused():
    engine = Engine()
    engine.submit([1], name="same")
    with pytest.raises(EngineError, match="E-RUN-ID"):
        engine.submit([2], name="same")


def test_counts_balance():
    """E06: what was received is what ended; tokens are counted once."""
    engine = Engine(GROUPS, batch=8, overlaps=True, broken=[9])
    everyone = load(engine, 40)
    for request in everyone[::5]:
        engine.loop.abort(request)
    engine.drain()
    stats = engine.loop.stats()
    assert sum(stats.finished.values()) == 40 and stats.finished["abort"] == 8
    assert (stats.running, stats.waiting, stats.blocks_used) == (0, 0, 0)
    assert stats.blocks_free + stats.blocks_cached == 200 and stats.kv_use == 0
    good = [r for r in everyone if r.finish_reason == "length"]
    assert stats.output_tokens >= sum(r.num_output for r in good)
