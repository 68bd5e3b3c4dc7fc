"""No-repeat n-grams, bad words, bitmasks and log-probability dicts, against what they say in the simplest words."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from canary import Engine
from hypothesis import given
from hypothesis import strategies as st

from bestiary.core.outputs import Logprob
from bestiary.core.runtime import restrictions
from bestiary.core.runtime.bad_words import BadWords
from bestiary.core.runtime.bitmasks import bitmask, words
from bestiary.core.runtime.logprob_dicts import logprob_dict
from bestiary.core.runtime.ngrams import NgramIndex

texts = st.lists(st.integers(0, 3), max_size=40)


def completes_a_run(text, n):
    """Tokens that, added to the text, end with n tokens that it already has in a row."""
    runs = {tuple(text[i : i + n]) for i in range(len(text) - n + 1)}
    return {token for token in range(4) if tuple([*text, token][-n:]) in runs and len(text) >= n - 1}


@given(text=texts, known=st.integers(0, 40), n=st.integers(1, 6))
def test_an_index_knows_the_runs_of_a_growing_text(text, known, n):
    index = NgramIndex(n, text[:known])
    for end in range(known, len(text)):
        assert index.banned() == completes_a_run(text[:end], n)
        index.append(text[end])
    assert index.banned() == completes_a_run(text, n)


def test_runs_longer_than_the_text_ban_nothing():
    assert NgramIndex(2**31 - 1, [1] * 50).banned() == set()


def test_an_index_of_long_runs_holds_little_for_each_token():
    """With the runs themselves it would be n times as much: 60 MB here."""
    text = [(i * i * 7919 + i) % 50_000 for i in range(6000)]
    tracemalloc.start()
    try:
        index = NgramIndex(3000, text)
        held, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held <= most < 400 * len(text)
    assert index.banned() == set()
    for token in text[1000:4500]:
        index.append(token)
    assert index.banned() == {text[4500]}


def test_an_index_is_not_made_for_requests_that_wait(monkeypatch):
    engine, made = Engine(batch=1), []
    monkeypatch.setattr(restrictions, "NgramIndex", lambda *given: made.append(given) or NgramIndex(*given))
    for first in range(5):
        engine.submit([first, 2, 3], 4, no_repeat_ngram_size=2)
    assert not made
    engine.step()
    assert made == [(2, [0, 2, 3])]
    engine.drain()
    assert [tokens for _, tokens in made] == [[first, 2, 3] for first in range(5)]


@given(sequences=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), max_size=8), text=texts)
def test_bad_words_are_never_completed(sequences, text):
    whole = {
        token for token in range(4) for s in sequences if [*text, token][-len(s) :] == s and len(text) + 1 >= len(s)
    }
    assert BadWords(sequences).banned(text) == whole


@pytest.mark.parametrize("size", [1, 31, 32, 33, 100])
def test_a_bitmask_has_the_bits_of_its_tokens(size):
    tokens = {0, size - 1, size // 2}
    mask = bitmask(tokens, size)
    assert mask.dtype == np.int32 and mask.shape == (words(size),)
    assert {t for t in range(32 * words(size)) if (int(mask[t // 32]) >> (t % 32)) & 1} == tokens
    assert not bitmask((), size).any()


def test_the_chosen_token_comes_first_and_once():
    assert logprob_dict(7, -1.5, 2, [4, 7], [-0.5, -1.5]) == {7: Logprob(-1.5, 2), 4: Logprob(-0.5, 1)}
    assert list(logprob_dict(7, -9.0, 50, [4, 5], [-0.5, -1.5])) == [7, 4, 5]
    assert logprob_dict(7, -9.0, 50, [], []) == {7: Logprob(-9.0, 50)}
