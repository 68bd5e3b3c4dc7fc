"""What requests take over from each other: never anything else than what they would have computed."""

from __future__ import annotations

import pytest
from canary import Engine
from hypothesis import given
from hypothesis import strategies as st

from bestiary.core.errors import EngineError
from bestiary.core.runtime.blocks import BlockPool
from bestiary.core.runtime.cache_groups import CacheGroup
from bestiary.core.runtime.continuations import Continuations
from bestiary.core.runtime.prefixes import Node, PrefixTree, Scope

FOUR = [CacheGroup(32, 4)]
TEXT = [(31 * i * i + 7) % 4093 for i in range(64)]


def run(engine, prompt, max_tokens=1, **said):
    """Run a request to its end and check its answer; what it took over, and why not more."""
    made = engine.submit(prompt, max_tokens, **said)
    engine.drain(poison=True)
    assert made.output == engine.expected(made), f"{made} read what is not its own"
    return made.num_cached, made.cache_miss


def test_a_prefix_is_reused_up_to_the_last_prompt_token():
    engine = Engine(FOUR)
    assert run(engine, TEXT[:8]) == (0, "unseen")
    assert run(engine, TEXT[:8]) == (7, None), "the last block is copied"
    assert run(engine, TEXT[:9]) == (8, None)
    assert run(engine, TEXT[:12]) == (9, "unseen"), "the ninth token lies in a block of its own"
    assert run(engine, [TEXT[0]]) == (0, None), "there is nothing to take over"


def test_the_end_of_a_finished_request_is_reused_by_copy():
    engine = Engine(FOUR)
    run(engine, TEXT[:7])
    engine.executor.steps.clear()
    assert run(engine, [*TEXT[:7], 1, 2]) == (7, "unseen")
    copies = [change for step in engine.executor.steps for change in step.tables if len(change.targets)]
    assert len(copies) == 1 and copies[0].sources[0] != copies[0].targets[0]


def test_a_block_that_differs_within_is_copied_as_far_as_it_is_equal():
    engine = Engine(FOUR)
    run(engine, TEXT[:12])
    assert run(engine, [*TEXT[:6], 1, 2, 3, 4]) == (6, "unseen")
    assert run(engine, [*TEXT[:10], 1]) == (10, None)


def test_output_blocks_are_reused_by_the_next_turn():
    engine = Engine(FOUR)
    first = engine.submit(TEXT[:6], 8)
    engine.drain()
    assert run(engine, [*first.tokens.tolist(), 1, 2, 3], 2) == (13, "unseen")


def test_reset_forgets_prefixes_and_running_requests_offer_none():
    engine = Engine(FOUR)
    running = engine.submit(TEXT[:9], 6)
    engine.step()
    engine.scheduler.reset_prefix_cache()
    assert run(engine, TEXT[:9], 6) == (0, "evicted")
    assert running.output == engine.requests[-1].output


def test_a_hit_is_the_longest_prefix_that_every_group_still_has():
    engine = Engine([CacheGroup(32, 4), CacheGroup(12, 4, window=6)], tokens=16)
    run(engine, TEXT[:40])
    assert run(engine, TEXT[:40], 3) == (39, None)
    # The window's blocks are gone while the other group still has the prefix.
    engine.scheduler.tables.pools[1].reset()
    assert run(engine, TEXT[:40], 3)[0] == 0


def test_groups_of_other_block_sizes_share_whole_multiples():
    engine = Engine([CacheGroup(40, 4), CacheGroup(40, 3, window=7)])
    run(engine, TEXT[:30])
    assert run(engine, TEXT[:30]) == (24, "partial block")


def test_256_requests_of_one_step_compute_their_shared_2048_tokens_once():
    shared = [(17 * i + 5) % 4093 for i in range(2048)]
    engine = Engine([CacheGroup(600, 16)], batch=256, tokens=4096, max_seq_len=2100)
    for i in range(256):
        engine.submit([*shared, i], 2)
    messages = engine.drain()
    assert all(r.output == engine.expected(r) for r in engine.requests[::37])
    assert sum(message.num_tokens for message in messages) == 2048 + 256 * 2
    assert engine.executor.rank.writes == 2048 + 256 * 2
    assert len(messages[0].slots) == 256, "they did not all run in the first step"
    assert [r.num_cached for r in engine.requests] == [0] + [2048] * 255


@pytest.mark.parametrize("overlaps", [False, True], ids=["one by one", "ahead"])
@pytest.mark.parametrize("groups", [FOUR, [CacheGroup(40, 4), CacheGroup(40, 4, window=5)]], ids=["one group", "two"])
def test_siblings_share_the_prompt_and_write_apart(overlaps, groups):
    engine = Engine(groups, overlaps=overlaps)
    first = engine.submit(TEXT[:11], 6)
    others = [engine.submit(TEXT[:11], 6, sibling=first) for _ in range(3)]
    messages = engine.drain(poison=True)
    assert all(r.output == engine.expected(r) for r in engine.requests)
    assert [r.num_cached for r in others] == [10] * 3
    assert sum(message.num_tokens for message in messages) == 11 + 3 * 1 + 4 * 5
    engine.check_drained()


@pytest.mark.parametrize("ending", ["abort", "preempt", "finish"])
def test_siblings_of_one_that_is_gone_go_on(ending):
    engine = Engine([CacheGroup(12, 4)], batch=2, capacity="max-utilization")
    first = engine.submit(TEXT[:11], 1 if ending == "finish" else 12)
    others = [engine.submit(TEXT[:11], 6, sibling=first) for _ in range(3)]
    engine.step()
    if ending == "abort":
        engine.loop.abort(first)
    elif ending == "preempt":
        engine.scheduler._preempt(first)
    engine.drain()
    assert all(r.output == engine.expected(r) for r in others)
    engine.check_drained()


def test_the_least_recently_used_prefix_is_evicted_first():
    engine = Engine([CacheGroup(6, 4)])
    for token in (1, 2, 1, 3):
        run(engine, [token] * 9)
    assert run(engine, [2] * 9)[1] == "evicted"
    engine = Engine([CacheGroup(6, 4)])
    for token in (1, 2, 1, 3):
        run(engine, [token] * 9)
    assert run(engine, [1] * 9)[0] > 0


def test_a_prefix_loses_its_end_before_its_beginning():
    engine = Engine([CacheGroup(6, 4)])
    run(engine, TEXT[:16])
    run(engine, [1] * 11)
    assert run(engine, TEXT[:16]) == (12, "evicted")


def test_blocks_of_a_low_priority_go_first():
    engine = Engine([CacheGroup(6, 4)])
    run(engine, [1] * 9, cache_priority=80)
    run(engine, [2] * 9, cache_priority=10)
    run(engine, [3] * 9)
    assert run(engine, [1] * 9)[0] == 8
    assert run(engine, [2] * 9)[1] == "evicted"


def test_a_block_has_the_highest_priority_of_those_who_used_it():
    engine = Engine([CacheGroup(8, 4)])
    run(engine, TEXT[:11], cache_priority=0)
    assert run(engine, TEXT[:11], cache_priority=100) == (10, None)
    assert run(engine, TEXT[:11], cache_priority=0) == (10, None), "a lower one changes nothing"
    for token in (1, 2, 3):
        run(engine, [token] * 17, cache_priority=50)
    assert run(engine, TEXT[:11], cache_priority=0) == (10, None), "whole blocks, and the one that was copied"


def test_a_priority_also_holds_for_blocks_that_a_window_has_left_behind():
    engine = Engine([CacheGroup(12, 4, window=5)], tokens=4)
    run(engine, TEXT[:17], cache_priority=0)
    assert run(engine, TEXT[:17], cache_priority=100) == (16, None)
    pool = engine.scheduler.tables.pools[0]
    assert {node.priority for node in pool.tree.index.values()} == {100}
    for token in (1, 2, 3):
        run(engine, [token] * 17, cache_priority=50)
    assert run(engine, TEXT[:17]) == (16, None)


def test_a_time_to_live_ends_reuse():
    now = [0.0]
    engine = Engine(FOUR, clock=lambda: now[0])
    run(engine, TEXT[:9], cache_ttl=10.0)
    now[0] = 9.0
    assert run(engine, TEXT[:9], cache_ttl=0.5)[0] == 8
    now[0] = 10.5
    assert run(engine, TEXT[:9]) == (0, "evicted")
    now[0] = 1e9
    assert run(engine, TEXT[:9])[0] == 8, "what was computed anew has no time to live"


def test_a_prefix_lives_as_long_as_the_one_who_wants_it_longest_wishes():
    now = [0.0]
    engine = Engine(FOUR, clock=lambda: now[0])
    run(engine, TEXT[:9], cache_ttl=1.0)
    assert run(engine, TEXT[:9], cache_ttl=5.0)[0] == 8
    now[0] = 4.0
    assert run(engine, TEXT[:9])[0] == 8
    now[0] = 1e9
    assert run(engine, TEXT[:9], cache_ttl=1.0)[0] == 8, "someone wanted it without an end"


def test_reuse_leaves_no_more_of_times_to_live_than_there_are_blocks():
    now = [0.0]
    engine = Engine([CacheGroup(16, 4)], clock=lambda: now[0])
    pool = engine.scheduler.tables.pools[0]
    for _ in range(200):
        now[0] += 0.01
        assert run(engine, TEXT[:33], cache_ttl=10.0)[1] in (None, "unseen")
    assert len(pool._expiring) == 9, "the eight blocks that are reused each time, and the last"
    for turn in range(200):  # no block is reused, each is taken for something else
        now[0] += 0.01
        run(engine, [turn] * 33, cache_ttl=1000.0 - turn)
    assert len(pool._expiring) <= 2 * 16
    assert run(engine, [199] * 33) == (32, None)
    now[0] += 5000.0
    pool.expire()
    assert not pool._expiring and pool.num_cached == 9, "the last prompt's, which someone wanted without an end"


def test_a_block_whose_time_is_over_while_it_is_held_stays_with_its_holder():
    now = [0.0]
    engine = Engine(FOUR, clock=lambda: now[0])
    holder = engine.submit(TEXT[:9], 9, cache_ttl=1.0)
    engine.step()
    now[0] = 2.0
    assert run(engine, TEXT[:9], 9)[0] == 0
    assert holder.output == engine.expected(holder)


def test_salts_keep_prefixes_apart_and_the_reason_is_told():
    engine = Engine(FOUR)
    run(engine, TEXT[:9])
    assert run(engine, TEXT[:9], cache_salt="a") == (0, "salt")
    assert run(engine, TEXT[:9], cache_salt="b") == (0, "salt")
    assert run(engine, TEXT[:9], cache_salt="a") == (8, None)


@pytest.mark.parametrize("guesser", [{}, {"cache_salt": "mine"}], ids=["no salt", "another salt"])
def test_what_a_salt_hides_is_told_to_the_operator_and_to_no_request(guesser):
    """A request that learned it could guess a prompt token by token."""
    answers, counts = [], []
    for secret in ([7, 8, 9], [5, 5, 5]):
        engine = Engine([CacheGroup(64, 4)])
        run(engine, [*TEXT[:6], *secret], 4, cache_salt="theirs")
        answers.append([run(engine, [*TEXT[:6], *guess, 1], **guesser) for guess in ([7], [7, 8], [7, 8, 9], [6])])
        counts.append(engine.loop.meters.cache_misses)
    assert answers[0] == answers[1] == [(0, "unseen"), (7, "unseen"), (8, "unseen"), (6, "unseen")]
    assert counts == [{"unseen": 2, "salt": 3}, {"unseen": 4, "salt": 1}]


def test_what_has_no_salt_is_told_though_salts_hide_the_same():
    engine = Engine([CacheGroup(64, 4)])
    for salt in ("a", None, "b"):
        run(engine, TEXT[:9], cache_salt=salt)
    assert run(engine, TEXT[:9], cache_salt="mine") == (0, "salt")
    engine.scheduler.reset_prefix_cache()
    run(engine, TEXT[:9], cache_salt="a")
    assert run(engine, TEXT[:9], cache_salt="other") == (0, "unseen"), "what has gone tells nothing"


def test_a_prompt_of_less_than_a_block_is_told_of_other_salts_and_of_eviction():
    engine = Engine([CacheGroup(4, 4)])
    run(engine, [1, 2, 3], 2, cache_salt="a")
    run(engine, [1, 2, 3], 2)
    assert run(engine, [1, 2, 3], cache_salt="b") == (0, "salt")
    assert run(engine, [1, 2, 3], cache_salt="a") == (2, None)
    run(engine, list(range(100, 116)))
    assert run(engine, [1, 2, 3], cache_salt="c") == (0, "unseen"), "what went is nobody's"
    assert run(engine, [1, 2, 3], cache_salt="a") == (0, "evicted")
    assert run(engine, [9, 2, 3], cache_salt="a") == (0, "unseen")


def test_the_rest_of_a_prompt_is_told_of_eviction():
    engine = Engine([CacheGroup(4, 4)])
    run(engine, TEXT[:11])
    run(engine, [50, 51, 52, 53, 54, 55])  # takes the free block, and the one of the last three tokens
    assert run(engine, TEXT[:11]) == (8, "evicted")
    engine = Engine(FOUR)
    run(engine, TEXT[:11])
    engine.scheduler.reset_prefix_cache()
    run(engine, TEXT[:10])
    assert run(engine, TEXT[:11]) == (10, None)


def test_the_rest_of_a_prompt_is_told_of_other_salts():
    engine = Engine(FOUR)
    run(engine, TEXT[:20])
    assert run(engine, TEXT[:6], cache_salt="b") == (0, "salt")
    assert run(engine, TEXT[:20], cache_salt="b") == (6, "salt"), "less than a block more"
    run(engine, TEXT[:30])
    assert run(engine, TEXT[:30], cache_salt="b") == (20, "salt"), "whole blocks more"
    assert run(engine, [*TEXT[:20], 1, 2, 3], cache_salt="b") == (20, "unseen")


def test_what_goes_on_from_a_prefix_is_found_among_any_number():
    engine = Engine([CacheGroup(1400, 4)])
    first = [*TEXT[:4], 7, 8, 9]
    run(engine, first)
    for token in range(600):
        run(engine, [*TEXT[:4], 1000 + token, 1, 1])
    assert run(engine, [*first, 1, 2]) == (7, "unseen")
    assert run(engine, [*TEXT[:4], 7, 8, 1, 2]) == (6, "unseen")


def test_what_went_is_remembered_among_any_number_that_went():
    engine = Engine([CacheGroup(1400, 4)])
    run(engine, [*TEXT[:4], 7, 8, 9])
    for token in range(600):
        run(engine, [*TEXT[:4], 1000 + token, 1, 1])
    engine.scheduler.reset_prefix_cache()
    run(engine, TEXT[:4])
    assert run(engine, [*TEXT[:4], 7, 8, 9, 1]) == (4, "evicted")
    assert run(engine, [*TEXT[:4], 6, 8, 9, 1]) == (4, "unseen")


def test_another_salt_is_told_among_any_number():
    engine = Engine([CacheGroup(3000, 4)])
    for salt in range(300):
        run(engine, [*TEXT[:8], salt, 5, 6], cache_salt=str(salt) if salt % 2 else None)
    run(engine, TEXT[:9], cache_salt="mine")
    for salt in (0, 150, 298):
        assert run(engine, [*TEXT[:8], salt, 5, 6], cache_salt="mine") == (8, "salt")
    before = dict(engine.loop.meters.cache_misses)
    for salt in (1, 151, 299, 300):
        assert run(engine, [*TEXT[:8], salt, 5, 6], cache_salt="mine") == (8, "unseen")
    assert engine.loop.meters.cache_misses == {**before, "salt": before["salt"] + 3, "unseen": before["unseen"] + 1}
    assert run(engine, [*TEXT[:6], 9, 9], cache_salt="other") == (0, "salt")


def test_what_goes_on_from_a_prefix_is_found_when_the_prefix_was_evicted_and_came_back():
    engine = Engine(FOUR)
    run(engine, TEXT[:10])
    pool = engine.scheduler.tables.pools[0]
    first = next(node for node in pool.tree.index.values() if node.tokens == tuple(TEXT[:4]))
    pool.forget(first.block)
    run(engine, TEXT[:4])
    assert run(engine, [*TEXT[:6], 1, 2]) == (6, "unseen"), "of the second block, which stayed"


_few = st.lists(st.integers(0, 2), min_size=1, max_size=5).map(tuple)


@given(given_=st.lists(_few, max_size=12), gone=st.data(), wanted=_few)
def test_the_most_alike_come_first_and_all_that_are_alike(given_, gone, wanted):
    found, nodes = Continuations(), []
    for number, tokens in enumerate(given_):
        nodes.append(Node(bytes([number % 3]), b"", tokens, None, Scope()))
        found.add(nodes[-1])
    for node in gone.draw(st.lists(st.sampled_from(nodes), unique=True)) if nodes else ():
        found.remove(node)
        nodes = [one for one in nodes if one is not node]
    alike = [
        (max(n for n in range(len(wanted) + 1) if node.tokens[:n] == wanted[:n] and n <= len(node.tokens)), node)
        for node in nodes
    ]
    seen = list(found.alike(wanted))
    assert [common for common, _ in seen] == sorted((common for common, _ in alike if common), reverse=True)
    assert {id(node): common for common, node in seen} == {id(node): common for common, node in alike if common}
    assert len(found) == len(nodes) == len(list(found))


def test_what_only_one_group_has_lost_is_evicted():
    engine = Engine([CacheGroup(32, 4), CacheGroup(32, 4, window=6)])
    run(engine, TEXT[:20])
    engine.scheduler.tables.pools[1].reset()
    assert run(engine, TEXT[:20]) == (0, "evicted")


def test_prefixes_that_went_are_remembered_only_so_long():
    tree = PrefixTree(key=b"k", remembered=2)
    nodes = [tree.find(tree.root(Scope()), [token, 5]) for token in range(3)]
    for node in nodes:
        node.block = 0
        tree.add(node)
    for node in nodes:
        tree.remove(node)
    had = [tree.evictions.had(tree.root(Scope()), [token]) for token in range(3)]
    assert had == [False, True, True] and not tree.evictions.had(tree.root(Scope()), [1, 6])
    tree.add(nodes[1])
    assert not tree.evictions.had(tree.root(Scope()), [1])


def test_what_is_not_reused_says_that_it_is_disabled():
    engine = Engine(FOUR)
    run(engine, TEXT[:9])
    assert run(engine, TEXT[:9], reuse_prefix=False) == (0, "disabled")
    assert run(engine, TEXT[:9], prompt_logprobs=0) == (0, "disabled")
    off = Engine(FOUR, prefix_caching=False)
    run(off, TEXT[:9])
    assert run(off, TEXT[:9]) == (0, "disabled")
    assert off.scheduler.tables.pools[0].num_cached == 0


def test_what_a_private_request_computed_is_offered_to_nobody():
    engine = Engine(FOUR)
    run(engine, TEXT[:9], reuse_prefix=False)
    assert run(engine, TEXT[:9]) == (0, "unseen")


def test_a_tail_that_is_being_written_is_not_copied():
    engine = Engine(FOUR)
    engine.submit(TEXT[:8], 2)
    late = engine.submit([*TEXT[:6], 1, 2], 2)
    engine.step()
    assert (late.num_cached, late.cache_miss) == (4, "partial block")
    engine.drain()
    assert late.output == engine.expected(late)


def test_a_forced_hash_collision_is_never_served(monkeypatch):
    monkeypatch.setattr(PrefixTree, "key", lambda self, parent, tokens: b"same")
    engine = Engine([CacheGroup(32, 2), CacheGroup(32, 2, window=3)])
    prompts = [[1, 1, 1, 1, 1], [2, 2, 1, 1, 1], [1, 1, 2, 2, 1], [1, 1, 1, 1, 2], [3, 3, 1, 1, 1]]
    for prompt in prompts * 2:
        run(engine, prompt, 3)
        assert run(engine, prompt, 3, cache_salt="s")[0] == 0, "what is indexed is another salt's"


def test_salts_whose_hashes_collide_are_kept_apart(monkeypatch):
    """Equal tokens under hashes that know nothing of the salt: only the scopes differ."""

    def of_tokens_only(self, parent, tokens):
        while parent.tokens:
            tokens, parent = (*parent.tokens, *tokens), parent.parent
        return repr(tokens).encode()

    monkeypatch.setattr(PrefixTree, "key", of_tokens_only)
    engine = Engine(FOUR)
    for salt, expected in [
        (None, (0, "unseen")),
        ("b", (0, "salt")),
        (None, (18, None)),
        ("b", (0, "salt")),
        ("a", (0, "salt")),
    ]:
        assert run(engine, TEXT[:19], 2, cache_salt=salt) == expected


def test_collisions_of_few_keys_are_never_served(monkeypatch):
    real = PrefixTree.key
    monkeypatch.setattr(PrefixTree, "key", lambda self, parent, tokens: real(self, parent, tokens)[:1])
    engine = Engine([CacheGroup(20, 2)])
    for turn in range(60):
        run(engine, [(turn * i) % 5 for i in range(3 + turn % 9)], 3)


def test_a_prefix_counts_only_with_all_that_comes_before_it():
    tree = PrefixTree(key=b"k")
    root = tree.root(Scope())
    first = tree.find(root, [1, 1])
    second = tree.find(first, [2, 2])
    second.block = 0
    tree.add(second)
    other = tree.find(root, [9, 9])
    other.key = first.key
    assert tree.find(first, [2, 2]) is second
    assert tree.find(tree.find(root, [1, 1]), [2, 2]) is second, "an equal prefix computed anew is the same prefix"
    assert tree.find(other, [2, 2]) is not second


def test_keys_of_two_engines_have_nothing_in_common():
    trees = [PrefixTree(), PrefixTree()]
    assert len({tree.find(tree.root(Scope()), [1, 2]).key for tree in trees}) == 2


def test_events_tell_what_is_stored_and_removed():
    engine = Engine([CacheGroup(4, 4)])
    pool = engine.scheduler.tables.pools[0]
    pool.watch()
    run(engine, TEXT[:9])
    stored = list(pool.events)
    assert [(e.kind, e.tokens) for e in stored] == [("stored", 4), ("stored", 4), ("stored", 1)]
    assert stored[1].parent == stored[0].key
    pool.events.clear()
    run(engine, [1] * 13)
    assert {e.key for e in pool.events if e.kind == "removed"} == {e.key for e in stored}
    engine.scheduler.reset_prefix_cache()
    assert pool.events[-1].kind == "cleared"


def test_what_goes_on_from_a_forgotten_prefix_is_not_offered_when_that_is_there_again():
    pool = BlockPool(8, 2, key=b"k")
    root = pool.tree.root(Scope())

    def store(parent, tokens):
        node, block = pool.tree.find(parent, tokens), pool.take()
        pool.register(node, block, step=1, priority=35, ttl=None)
        return node, block

    first, _ = store(root, [1, 2])
    second, left = store(first, [3, 4])
    _, last = store(second, [5, 6])
    pool.release(last)
    pool.release(left)
    assert sorted(pool.forget_branch(first)) == sorted([left, last]), "the first one's block is held still"
    first, _ = store(root, [1, 2])
    second = pool.tree.find(first, [3, 4])
    assert second.block < 0 and pool.tree.find(second, [5, 6]).block < 0


def test_an_empty_pool_says_so():
    pool = BlockPool(1, 4)
    pool.take()
    with pytest.raises(EngineError, match="no block is left"):
        pool.take()
