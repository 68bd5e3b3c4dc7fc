"""Functions on rows of logits against loops over the rows, and against transformers' logits processors."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from row_oracles import keep_top_listed, listed, logprobs_listed
from transformers import NoBadWordsLogitsProcessor, NoRepeatNGramLogitsProcessor

from bestiary.core.runtime.bad_words import BadWords
from bestiary.core.runtime.bitmasks import bitmask
from bestiary.core.runtime.logits import Limits, keep_top
from bestiary.core.runtime.logprobs import logprob_rows
from bestiary.core.runtime.ngrams import NgramIndex
from bestiary.core.runtime.random_numbers import as_int64, uniforms
from bestiary.core.runtime.random_stream import uniform
from bestiary.core.runtime.token_masks import keep_masked, without

INF = float("inf")


def normal(rows, width, seed=0, scale=3.0):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("width", [1, 32, 33, 100])
@pytest.mark.parametrize("rows", [None, [4, 0, 2]])
def test_masks_keep_what_their_bits_say(width, rows):
    rng = random.Random(width)
    chosen = [0, 1, 2, 3, 4] if rows is None else rows
    kept = [{t for t in range(width) if rng.random() < 0.5} | {width - 1} for _ in chosen]
    masks = torch.from_numpy(np.stack([bitmask(tokens, width) for tokens in kept]))
    x = normal(5, width)
    expected = x.clone()
    for row, tokens in zip(chosen, kept, strict=True):
        for token in set(range(width)) - tokens:
            expected[row, token] = -INF
    found = keep_masked(x, masks, None if rows is None else torch.tensor(rows))
    assert torch.equal(found, expected) and torch.equal(x, normal(5, width))


def test_bits_past_the_vocabulary_mean_nothing():
    x = normal(1, 33)
    assert torch.equal(keep_masked(x, torch.full((1, 2), -1, dtype=torch.int32)), x)
    assert torch.equal(keep_masked(x, torch.tensor([[0, 2]], dtype=torch.int32)), torch.full((1, 33), -INF))


def test_single_tokens_are_removed_from_their_rows_alone():
    x = normal(3, 10)
    found = without(x, torch.tensor([2, 0, 2, 2]), torch.tensor([9, 1, 9, 0]))
    expected = x.clone()
    expected[2, 9] = expected[0, 1] = expected[2, 0] = -INF
    assert torch.equal(found, expected) and torch.equal(x, normal(3, 10))
    empty = torch.tensor([], dtype=torch.int64)
    assert torch.equal(without(x, empty, empty), x)


def flat(banned):
    pairs = [(row, token) for row, tokens in enumerate(banned) for token in tokens]
    return torch.tensor([r for r, _ in pairs], dtype=torch.int64), torch.tensor(
        [t for _, t in pairs], dtype=torch.int64
    )


def random_texts(length, rows=6, width=5):
    return torch.randint(width, (rows, length), generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [1, 2, 3, 30])
def test_no_repeat_ngrams_are_those_of_transformers(n, length):
    ids, x = random_texts(length), normal(6, 5)
    found = without(x, *flat([NgramIndex(n, row).banned() for row in ids.tolist()]))
    assert torch.equal(found, NoRepeatNGramLogitsProcessor(n)(ids, x.clone()))


@pytest.mark.parametrize("length", [1, 2, 3, 30])
def test_bad_words_are_those_of_transformers(length):
    ids, x = random_texts(length), normal(6, 5)
    sequences = [[4], [0, 1], [1, 1], [2, 0, 3], [3, 2, 1, 0], [0, 2]]
    found = without(x, *flat([BadWords(sequences).banned(row) for row in ids.tolist()]))
    assert torch.equal(found, NoBadWordsLogitsProcessor(sequences)(ids, x.clone()))
    assert torch.isinf(found).sum() > 6, "no word of several tokens was completed"


def test_random_numbers_on_the_device_are_those_of_the_stream():
    rng = random.Random(0)
    edges = [0, 1, 2**63 - 1, 2**63, 2**64 - 1]
    pairs = [(s, c) for s in edges for c in (0, 1, 2**31)] + [
        (rng.getrandbits(64), rng.getrandbits(20)) for _ in range(500)
    ]
    seeds = torch.tensor([as_int64(seed) for seed, _ in pairs])
    found = uniforms(seeds, torch.tensor([counter for _, counter in pairs]))
    assert found.dtype == torch.float64 and found.tolist() == [uniform(seed, counter) for seed, counter in pairs]


LIMITS = {
    "none": [(-1, 1.0), (-1, 1.0)],
    "top_k": [(5, 1.0), (-1, 1.0), (1, 1.0), (900, 1.0)],
    "top_p": [(-1, 0.5), (-1, 1.0), (-1, 0.999), (-1, 1e-9)],
    "bounded": [(5, 0.5), (-1, 1.0), (300, 0.99), (1024, 1 - 2**-53), (700, 1.0)],
    "free": [(5, 0.5), (-1, 0.99), (1500, 0.999), (2000, 1.0), (-1, 1.0)],
}


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize("kind", ["peaked", "flat", "tied"])
@pytest.mark.parametrize("width", [40, 3000])
def test_limits_on_the_device_keep_what_limits_in_lists_keep(limits, kind, width):
    limits = [(min(k, width - 1), p) for k, p in limits]
    x = normal(len(limits), width, scale=0.1 if kind == "flat" else 3.0)
    x = x.round() if kind == "tied" else x
    ks, ps = torch.tensor([k for k, _ in limits]), torch.tensor([p for _, p in limits], dtype=torch.float64)
    found = keep_top(x, ks, ps, Limits.of(limits))
    assert torch.equal(found, keep_top_listed(x, [k for k, _ in limits], [p for _, p in limits]))
    alone = [keep_top(x[i : i + 1], ks[i : i + 1], ps[i : i + 1], Limits.of([limits[i]])) for i in range(len(limits))]
    assert torch.equal(found, torch.cat(alone))


def test_the_host_knows_when_the_device_must_be_asked():
    assert Limits.of([(-1, 1.0)]) == (0, False, True)
    assert Limits.of([(7, 0.5), (2000, 1.0)]) == (2000, True, True)
    assert Limits.of([(7, 0.5), (-1, 0.5)]) == (7, True, False) == Limits.of([(7, 0.5), (-1, 0.9)])
    assert not Limits.of([(1025, 0.5)]).bounded


def test_logprobs_stay_on_the_device_until_they_are_listed():
    x, chosen, count = normal(200, 50), [i % 50 for i in range(200)], [i % 4 for i in range(200)]
    rows = logprob_rows(x, torch.tensor(chosen), 3)
    assert [tuple(part.shape) for part in rows] == [(200,), (200,), (200, 3), (200, 3)]
    assert listed(rows, chosen, count) == logprobs_listed(x, chosen, count)
    whole = torch.log_softmax(x, dim=-1)
    for row in (0, 127, 128, 199):
        order = whole[row].argsort(descending=True).tolist()
        entry = logprobs_listed(x, chosen, count)[row]
        assert set(entry) == {chosen[row], *order[: count[row]]}
        assert all(value.rank == order.index(token) + 1 for token, value in entry.items())
        assert all(value.logprob == pytest.approx(float(whole[row, token])) for token, value in entry.items())


def test_no_likeliest_tokens_and_rows_without_a_token():
    rows = logprob_rows(normal(2, 5), torch.tensor([-1, 3]), 0)
    assert rows.best_ids.shape == (2, 0) and listed(rows, [0, 3], [0, 0])[1].keys() == {3}
