"""The sampler against a naive reference a row at a time, and against transformers' logits processors."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bestiary.core.resolve_params import resolve
from bestiary.core.runtime import logits as rows_of
from bestiary.core.runtime.inputs import SlotState
from bestiary.core.runtime.logprob_dicts import logprob_dict
from bestiary.core.runtime.messages import Bans, Opened, SampleMessage, Scored
from bestiary.core.runtime.random_stream import uniform
from bestiary.core.runtime.sampler import Sampler
from bestiary.core.sampling_params import SamplingParams

V = 300
CASES = {
    "greedy": {"temperature": 0},
    "temperature": {"temperature": 1.7},
    "top_k": {"temperature": 1.5, "top_k": 7},
    "top_k 1": {"top_k": 1},
    "top_p": {"temperature": 2.0, "top_p": 0.7},
    "min_p": {"temperature": 2.0, "min_p": 0.2},
    "all three": {"temperature": 3.0, "top_k": 40, "top_p": 0.8, "min_p": 0.05},
    "repetition": {"temperature": 1.0, "repetition_penalty": 1.8},
    "repetition below 1": {"temperature": 0, "repetition_penalty": 0.6},
    "frequency and presence": {"temperature": 0, "frequency_penalty": 1.5, "presence_penalty": 0.7},
    "bias": {"temperature": 0, "logit_bias": {5: 100, 6: -100}},
    "bias drawn": {"temperature": 1.0, "logit_bias": {5: 4.5}},
    "min_tokens": {"temperature": 0, "min_tokens": 10, "logit_bias": {2: 100}},
    "everything": {
        "temperature": 1.3, "top_k": 50, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.2, "presence_penalty": 0.3,
        "frequency_penalty": -0.4, "logit_bias": {1: 3.0}, "min_tokens": 10, "logprobs": 3,
    },
}  # fmt: skip


class Row:
    """A request that decodes in a slot of its own."""

    def __init__(self, said, output=3, prompt=(1, 2, 3, 4, 4)):
        given = {"max_tokens": 50, "seed": 11, **said}
        self.params = resolve(SamplingParams(**given), vocab_size=V, eos_token_ids=[2])
        self.prompt = list(prompt)
        self.output = [(7 * i) % V for i in range(output)] + [9, 9][: max(0, output - 1)]

    @property
    def tokens(self):
        return self.prompt + self.output

    @property
    def num_output(self):
        return len(self.output)

    def opened(self, slot):
        return Opened(slot, 0, len(self.prompt), np.array(self.tokens, np.int32), self.params.for_ranks)


def make(rows):
    """A sampler whose slots are the rows', in order."""
    cpu = torch.device("cpu")
    state = SlotState(len(rows), SimpleNamespace(groups=()), 512, cpu)
    opened = tuple(row.opened(slot) for slot, row in enumerate(rows))
    state.open(opened)
    sampler = Sampler(state, None)
    sampler.open(opened)
    return sampler, state


def choose(x, rows, made=None, slots=None):
    """The sampler's results for rows of logits [R, V]; what the host removes is what a restriction would tell."""
    sampler, state = made or make(rows)
    slots = np.arange(len(rows), dtype=np.int32) if slots is None else slots
    state.stored[torch.from_numpy(slots).long()] = torch.tensor([len(row.tokens) for row in rows])
    early = [(i, 2) for i, row in enumerate(rows) if row.num_output < row.params.min_tokens]
    bans = Bans(*np.array(early, np.int32).T) if early else None
    asked = np.array([-1 if row.params.logprobs is None else row.params.logprobs for row in rows], np.int32)
    logprobs = asked if (asked >= 0).any() else None
    return sampler.sample(x, SampleMessage(slots, None, False, bans, logprobs=logprobs))


def tokens(x, rows):
    return choose(x, rows).tokens.tolist()


def logits(rows, seed=0, dtype=torch.float32):
    return (torch.randn(rows, V, generator=torch.Generator().manual_seed(seed)) * 3).to(dtype)


def naive(row, request):
    """The documented order, one token at a time in Python floats."""
    p = request.params
    x = [float(v) for v in row]
    for token, bias in p.logit_bias.items():
        x[token] += bias
    if request.num_output < p.min_tokens:
        for token in p.end_token_ids:
            x[token] = -math.inf
    for token in range(V):
        if token in request.tokens:
            x[token] = x[token] / p.repetition_penalty if x[token] > 0 else x[token] * p.repetition_penalty
        count = request.output.count(token)
        x[token] -= p.frequency_penalty * count + p.presence_penalty * (count > 0)
    if p.greedy:
        return x.index(max(x))
    x = [v / p.temperature for v in x]
    order = sorted(range(V), key=lambda token: -x[token])
    if p.top_k > 0:
        order = [token for token in order if x[token] >= x[order[p.top_k - 1]]]
    weights = {token: math.exp(x[token] - x[order[0]]) for token in order}
    total, reached, kept = sum(weights.values()), 0.0, []
    for token in order:
        if reached >= p.top_p and p.top_p < 1:
            break
        kept.append(token)
        reached += weights[token] / total
    kept = sorted(token for token in kept if weights[token] >= p.min_p)
    target, reached = uniform(p.seed, request.num_output) * sum(weights[t] for t in kept), 0.0
    for token in kept:
        reached += weights[token]
        if reached > target:
            return token
    return kept[-1]


@pytest.mark.parametrize("name", CASES)
def test_a_row_is_sampled_as_documented(name):
    rows = [Row({**CASES[name], "seed": seed}, output=1 + seed % 5) for seed in range(40)]
    x = logits(40, seed=3)
    assert tokens(x, rows) == [naive(x[i], row) for i, row in enumerate(rows)]


def test_a_request_samples_alone_what_it_samples_in_any_batch():
    rows = [Row({**said, "seed": seed}) for seed in range(3) for said in CASES.values()]
    x = logits(len(rows), seed=1)
    together = tokens(x, rows)
    alone = [tokens(x[i : i + 1], [row])[0] for i, row in enumerate(rows)]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(2)).tolist()
    shuffled = tokens(x[order], [rows[i] for i in order])
    assert together == alone and [together[i] for i in order] == shuffled


def test_seeds_and_positions_give_different_tokens():
    flat = torch.zeros(60, V)
    by_seed = tokens(flat, [Row({"seed": s}) for s in range(60)])
    by_position = tokens(flat, [Row({}, output=n) for n in range(60)])
    assert len(set(by_seed)) > 40 and len(set(by_position)) > 40


def test_frequencies_follow_the_distribution():
    row = torch.log(torch.tensor([0.5, 0.25, 0.15, 0.1]))
    found = tokens(row.expand(4000, 4), [Row({"seed": seed}) for seed in range(4000)])
    counts = torch.bincount(torch.tensor(found), minlength=4)
    chi = sum((float(n) - e) ** 2 / e for n, e in zip(counts, (2000, 1000, 600, 400), strict=True))
    assert chi < 16.3  # 3 degrees, p = 0.001


def test_counts_follow_the_output_from_step_to_step():
    told = {"temperature": 0, "frequency_penalty": 2.0, "repetition_penalty": 1.3}
    rows = [Row(told, output=0), Row({"temperature": 0}, output=0)]
    made = make(rows)
    for step in range(30):
        x = logits(2, seed=step % 3)
        found = choose(x, rows, made).tokens.tolist()
        assert found == [naive(x[i], row) for i, row in enumerate(rows)]
        for row, token in zip(rows, found, strict=True):
            row.output.append(token)


def test_a_slot_forgets_its_earlier_owner():
    told = {"temperature": 0, "frequency_penalty": 2.0, "logit_bias": {7: 100.0}}
    made = make([Row(told, output=4)])
    choose(logits(1), [Row(told, output=4)], made)
    heir = Row({"temperature": 0, "frequency_penalty": 0.5}, output=0, prompt=(8,))
    made[0].open((heir.opened(0),))
    made[1].open((heir.opened(0),))
    x = logits(1, seed=9)
    assert choose(x, [heir], made).tokens.tolist() == [naive(x[0], heir)]


def test_chosen_tokens_become_the_slots_last_ones():
    rows = [Row({"temperature": 0}), Row({"temperature": 1.0})]
    made = make(rows)
    found = choose(logits(2), rows, made).tokens
    assert made[1].last[:2].tolist() == found.tolist()


def kept(x, k, p):
    """The logits that top_k and top_p leave, each row's limits alike."""
    count = len(x)
    top_k, top_p = torch.full((count,), k), torch.full((count,), p, dtype=torch.float64)
    return rows_of.keep_top(x, top_k, top_p, rows_of.Limits.of([(k, p)] * count))


@pytest.mark.parametrize("k", [1, 2, 5, 50, V])
@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
def test_top_k_is_transformers(k, ties):
    from transformers import TopKLogitsWarper

    x = logits(8).round() if ties else logits(8)
    assert torch.equal(kept(x, k, 1.0), TopKLogitsWarper(k)(None, x))


@pytest.mark.parametrize("p", [0.01, 0.3, 0.9, 0.999])
def test_top_p_is_transformers(p):
    from transformers import TopPLogitsWarper

    x = torch.cat([logits(8), logits(8) / 100])
    assert torch.equal(kept(x, -1, p), TopPLogitsWarper(p)(None, x))


def test_top_p_of_a_large_flat_vocabulary_looks_beyond_the_likeliest():
    from transformers import TopPLogitsWarper

    x = torch.randn(3, 5000, generator=torch.Generator().manual_seed(0))
    x[1] *= 20
    assert torch.equal(kept(x, -1, 0.9), TopPLogitsWarper(0.9)(None, x))


@pytest.mark.parametrize("min_p", [0.05, 0.5, 1.0])
def test_min_p_is_transformers(min_p):
    from transformers import MinPLogitsWarper

    x = logits(1)
    kept = torch.isfinite(MinPLogitsWarper(min_p)(None, x))[0].nonzero().squeeze(1).tolist()
    numbers = ((torch.arange(4000) + 0.5) / 4000).double().unsqueeze(1)
    drawn = rows_of.draw(x.expand(4000, V), torch.full((4000, 1), min_p, dtype=torch.float64), numbers)
    assert set(drawn.tolist()) <= set(kept) and (min_p < 0.5 or set(drawn.tolist()) == set(kept))


@pytest.mark.parametrize("penalty", [0.5, 1.3, 3.0])
def test_the_repetition_penalty_is_transformers(penalty):
    from transformers import RepetitionPenaltyLogitsProcessor

    x, ids = logits(4), torch.tensor([[1, 5, 5, 9], [0, 1, 2, 3], [7, 7, 7, 7], [299, 0, 4, 4]])
    seen = torch.zeros(4, V, dtype=torch.bool).scatter(1, ids, True)
    none, zero = torch.zeros(4, V, dtype=torch.int32), torch.zeros(4, 1)
    ours = rows_of.penalize(x, seen, none, torch.full((4, 1), penalty), zero, zero)
    assert torch.equal(ours, RepetitionPenaltyLogitsProcessor(penalty)(ids, x.clone()))


def test_the_logits_of_others_and_of_the_model_are_left_alone():
    x = logits(3)
    before = x.clone()
    choose(x, [Row(CASES[name]) for name in ("bias", "everything", "min_tokens")])
    assert torch.equal(x, before)


@pytest.mark.parametrize("count", [0, 1, 5, 20])
def test_logprobs_are_of_the_raw_logits_with_ranks(count):
    x = logits(3, seed=4)
    said = {**CASES["everything"], "logprobs": count}
    result = choose(x, [Row({"temperature": 0}), Row(said), Row({"temperature": 1.0})])
    expected = torch.log_softmax(x[1], dim=-1)
    order = expected.argsort(descending=True).tolist()
    chosen, rows = int(result.tokens[1]), result.logprobs
    assert len(rows.values) == 1, "only one row asked"
    best = rows.best_ids[0, :count].tolist(), rows.best_values[0, :count].tolist()
    entry = logprob_dict(chosen, float(rows.values[0]), int(rows.ranks[0]), *best)
    assert set(entry) == {chosen, *order[:count]}
    for token, value in entry.items():
        assert value.logprob == pytest.approx(float(expected[token]), abs=1e-5) and value.rank == order.index(token) + 1


def test_prompt_scores_are_of_their_own_rows():
    """Rows of the step's logits: two decodes, then four of a prompt."""
    rows = [Row({"temperature": 0}), Row({"temperature": 0})]
    sampler, _ = make(rows)
    x, targets = logits(6, seed=6), [3, 1, 4, 1]
    scored = (Scored(2, np.array(targets, np.int32), 2),)
    wanted = SampleMessage(np.array([0, 1], np.int32), np.array([0, 1], np.int32), scored=scored)
    (found,) = sampler.sample(x, wanted).scored
    expected = torch.log_softmax(x[2:], dim=-1)
    assert torch.allclose(found.values, expected[range(4), targets], atol=1e-5)
    assert found.best_ids.tolist() == expected.topk(2).indices.tolist()


def test_a_row_with_everything_removed_gives_no_token():
    x = torch.full((2, V), -torch.inf)
    x[0, 2] = x[1, 5] = 0.0
    assert tokens(x, [Row({"temperature": 1.0, "min_tokens": 10}), Row({"temperature": 1.0})]) == [-1, 5]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=["nan", "inf", "minus-inf"])
@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "drawn"])
def test_broken_logits_give_no_token_and_leave_others_theirs(bad, temperature):
    x, rows = logits(3), [Row({"temperature": temperature, "seed": i}) for i in range(3)]
    whole = tokens(x, rows)
    x[1] = bad
    assert tokens(x, rows) == [whole[0], -1, whole[2]]
