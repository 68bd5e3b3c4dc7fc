"""Beam search as a pure algorithm: what runs on, what ends, and when it is over."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from bestiary.core.runtime.beam import BeamSearch, Continuation

V = 4
END = 3


def logprob(text, token):
    """A fixed model: a distribution over four tokens that depends on the text."""
    weights = [1 + (7 * t + 3 * len(text) + sum((i + 1) * u for i, u in enumerate(text))) % 5 for t in range(V)]
    return math.log(weights[token] / sum(weights))


def searched(width, **options):
    search = BeamSearch(width, end_tokens=[END], **options)
    beams = [()]
    steps = 0
    while not search.done:
        rows = [[logprob(beam, token) for token in range(V)] for beam in beams]
        beams = [
            (*beams[parent], token)
            for parent, token in search.advance(np.tile(np.arange(V), (len(beams), 1)), np.array(rows))
        ]
        steps += 1
    return search.results(), steps


def everything(max_tokens):
    """Every answer and its summed log-probability."""
    for length in range(1, max_tokens + 1):
        for text in itertools.product(range(V - 1), repeat=length):
            ended = (*text[:-1], END)
            for whole in (text, ended) if length == max_tokens else (ended,):
                yield whole, sum(logprob(whole[:i], whole[i]) for i in range(len(whole)))


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
def test_beams_that_leave_nothing_out_find_the_best(length_penalty):
    found, _ = searched(256, max_tokens=4, length_penalty=length_penalty)
    best = sorted({(total / len(whole) ** length_penalty, whole) for whole, total in everything(4)}, reverse=True)
    assert [answer.score for answer in found[:20]] == pytest.approx([score for score, _ in best[:20]])
    assert found[0].tokens == best[0][1]


def test_scores_are_sums_over_lengths():
    found, _ = searched(3, max_tokens=5, length_penalty=1.5)
    for answer in found:
        total = sum(logprob(answer.tokens[:i], answer.tokens[i]) for i in range(len(answer.tokens)))
        assert answer.sum_logprob == pytest.approx(total)
        assert answer.score == pytest.approx(total / len(answer.tokens) ** 1.5)
    assert [a.score for a in found] == sorted((a.score for a in found), reverse=True)


def step(search, *rows):
    """Advance by {token: log-probability} of each beam."""
    return search.advance(np.array([list(row) for row in rows]), np.array([list(row.values()) for row in rows]))


def test_the_first_step_has_one_beam_and_the_next_the_width():
    search = BeamSearch(2, max_tokens=9, end_tokens=[END])
    assert search.candidates == 3
    assert step(search, {0: -1.0, 1: -0.5, 2: -2.0}) == [Continuation(0, 1), Continuation(0, 0)]
    assert step(search, {0: -1.0, 1: -4.0}, {0: -0.2, 1: -9.0}) == [Continuation(1, 0), Continuation(0, 0)]


def test_an_end_below_the_best_is_dropped():
    search = BeamSearch(2, max_tokens=9, end_tokens=[END])
    step(search, {0: -1.0, 1: -1.1, END: -1.2})
    assert search.results() == []
    step(search, {0: -1.0, END: -0.1}, {0: -1.0, 1: -1.5})
    assert [answer.tokens for answer in search.results()] == [(0, END)]


def test_early_stopping_ends_with_enough_answers():
    options = {"max_tokens": 50, "end_tokens": [END], "length_penalty": 1.0}
    rows = {"early": True, "heuristic": False, "never": "never"}
    searches = {name: BeamSearch(1, early_stopping=value, **options) for name, value in rows.items()}
    for search in searches.values():
        step(search, {0: -2.0, END: -1.9})
    # The running beam's -2.0 over one token is worse than -1.9, over fifty tokens it could be better.
    assert {name: search.done for name, search in searches.items()} == {
        "early": True,
        "heuristic": True,
        "never": False,
    }
    better = BeamSearch(2, early_stopping=False, **options)
    assert not better.done and step(better, {0: -0.1, 1: -0.2}) and not better.done


def test_a_running_beam_must_be_better_than_the_worst_answer():
    search = BeamSearch(1, max_tokens=50, end_tokens=[END])
    step(search, {END: -2.0, 0: -2.0})
    assert search.done


def test_never_hopes_for_length_only_where_length_helps():
    search = BeamSearch(2, max_tokens=50, end_tokens=[END], length_penalty=-1.0, early_stopping="never")
    step(search, {0: -1.0, END: -1.1, 1: -5.0})
    # Scores are sums times lengths: -1.1 and -4.0 have ended, and the best running beam has -2.4 at its length of 2.
    assert step(search, {2: -0.2, END: -1.0}, {0: -1.0, 1: -1.0}) and not search.done
    assert [answer.score for answer in search.results()] == [-1.1, -4.0]


def test_the_last_token_ends_every_beam():
    search = BeamSearch(2, max_tokens=1, end_tokens=[END])
    assert step(search, {0: -1.0, 1: -0.5, 2: -2.0}) == [] and search.done
    assert [(a.tokens, a.score) for a in search.results()] == [((1,), -0.5), ((0,), -1.0)]


def test_removed_tokens_are_never_taken():
    search = BeamSearch(2, max_tokens=3, end_tokens=[END])
    assert step(search, {0: -math.inf, 1: -1.0, 2: math.nan}) == [Continuation(0, 1)]
    assert step(search, {0: -math.inf, END: -math.inf}) == [] and search.done and search.results() == []
