"""The sampler against a naive reference a row at a time, and against transformers' logits processors."""

from __future__ import annotations

import math

import pytest
import torch

from bestiary.core.runtime import logits as rows_of
from bestiary.core.runtime.batch import Batch, Segment
from bestiary.core.runtime.random_stream import uniform
from bestiary.core.runtime.request import Request
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


def request(name, said, output=3, prompt=(1, 2, 3, 4, 4)):
    params = SamplingParams(**{"max_tokens": 50, "seed": 11, **said}).resolve(vocab_size=V, eos_token_ids=[2])
    made = Request(name, prompt, params, max_seq_len=500)
    made.tokens += [(7 * i) % V for i in range(output)] + [9, 9][: max(0, output - 1)]
    return made


def decode(*requests):
    return Batch(tuple(Segment(r, len(r.tokens) - 1, 1, range(1)) for r in requests))


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
    requests = [request(str(seed), {**CASES[name], "seed": seed}, output=1 + seed % 5) for seed in range(40)]
    x = logits(40, seed=3)
    assert Sampler().sample(x, decode(*requests)).tokens == [naive(x[i], r) for i, r in enumerate(requests)]


def test_a_request_samples_alone_what_it_samples_in_any_batch():
    requests = [request(f"{name} {seed}", {**said, "seed": seed}) for seed in range(3) for name, said in CASES.items()]
    x = logits(len(requests), seed=1, dtype=torch.bfloat16)
    together = Sampler().sample(x, decode(*requests)).tokens
    alone = [Sampler().sample(x[i : i + 1], decode(r)).tokens[0] for i, r in enumerate(requests)]
    order = torch.randperm(len(requests), generator=torch.Generator().manual_seed(2)).tolist()
    shuffled = Sampler().sample(x[order], decode(*[requests[i] for i in order])).tokens
    assert together == alone and [together[i] for i in order] == shuffled


def test_seeds_and_positions_give_different_tokens():
    flat = torch.zeros(60, V)
    by_seed = Sampler().sample(flat, decode(*[request(str(s), {"seed": s}) for s in range(60)])).tokens
    by_position = Sampler().sample(flat, decode(*[request(str(n), {}, output=n) for n in range(60)])).tokens
    assert len(set(by_seed)) > 40 and len(set(by_position)) > 40


def test_frequencies_follow_the_distribution():
    row = torch.log(torch.tensor([0.5, 0.25, 0.15, 0.1]))
    requests = [request(str(seed), {"seed": seed}) for seed in range(4000)]
    counts = torch.bincount(torch.tensor(Sampler().sample(row.expand(4000, 4), decode(*requests)).tokens), minlength=4)
    chi = sum((float(n) - e) ** 2 / e for n, e in zip(counts, (2000, 1000, 600, 400), strict=True))
    assert chi < 16.3  # 3 degrees, p = 0.001


def test_counts_follow_the_output_from_step_to_step():
    sampler, told = Sampler(), {"temperature": 0, "frequency_penalty": 2.0, "repetition_penalty": 1.3}
    one = request("one", told, output=0)
    for step in range(30):
        x = logits(1, seed=step % 3)
        token = sampler.sample(x, decode(one)).tokens[0]
        assert token == naive(x[0], one)
        one.tokens.append(token)
    sampler.forget(one)
    assert not sampler._counts


@pytest.mark.parametrize("k", [1, 2, 5, 50, V])
@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
def test_top_k_is_transformers(k, ties):
    from transformers import TopKLogitsWarper

    x = logits(8).round() if ties else logits(8)
    assert torch.equal(rows_of.keep_top(x, [k] * 8, [1.0] * 8), TopKLogitsWarper(k)(None, x))


@pytest.mark.parametrize("p", [0.01, 0.3, 0.9, 0.999])
def test_top_p_is_transformers(p):
    from transformers import TopPLogitsWarper

    x = torch.cat([logits(8), logits(8) / 100])
    assert torch.equal(rows_of.keep_top(x, [-1] * 16, [p] * 16), TopPLogitsWarper(p)(None, x))


def test_top_p_of_a_large_flat_vocabulary_looks_beyond_the_likeliest():
    from transformers import TopPLogitsWarper

    x = torch.randn(3, 5000, generator=torch.Generator().manual_seed(0))
    x[1] *= 20
    assert torch.equal(rows_of.keep_top(x, [-1] * 3, [0.9] * 3), TopPLogitsWarper(0.9)(None, x))


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
    Sampler().sample(x, decode(*[request(n, CASES[n]) for n in ("bias", "everything", "min_tokens")]))
    assert torch.equal(x, before)


@pytest.mark.parametrize("count", [0, 1, 5, 20])
def test_logprobs_are_of_the_raw_logits_with_ranks(count):
    said = {**CASES["everything"], "logprobs": count}
    x, one, other = logits(2, seed=4), request("one", said), request("other", {"temperature": 0})
    result = Sampler().sample(x, decode(other, one))
    assert set(result.logprobs) == {1}
    expected = torch.log_softmax(x[1], dim=-1)
    order = expected.argsort(descending=True).tolist()
    chosen, entry = result.tokens[1], result.logprobs[1]
    assert set(entry) == {chosen, *order[:count]}
    for token, value in entry.items():
        assert value.logprob == pytest.approx(float(expected[token]), abs=1e-5) and value.rank == order.index(token) + 1


@pytest.mark.parametrize("chunk", [1, 3, 4, 10])
def test_prompt_logprobs_meet_across_chunks(chunk):
    prompt = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
    one = request("one", {"prompt_logprobs": 2}, output=0, prompt=prompt)
    x, entries = logits(10, seed=6), []
    for start in range(0, 10, chunk):
        count = min(chunk, 10 - start)
        batch = Batch((Segment(request("other", {}), 7, 1, range(1)), Segment(one, start, count, range(count))))
        result = Sampler().sample(torch.cat([logits(1), x[start : start + count]]), batch)
        entries += result.prompt_logprobs.get(1, [])
        assert (result.tokens[1] is not None) == (start + count == 10)
    expected = torch.log_softmax(x, dim=-1)
    assert len(entries) == 9
    for position, entry in enumerate(entries):
        target = prompt[position + 1]
        assert entry[target].logprob == pytest.approx(float(expected[position, target]), abs=1e-5)
        assert len(entry) in (2, 3) and {value.rank for value in entry.values()} >= {1, 2}


def test_unfinished_chunks_are_not_sampled():
    one, two = request("one", {}, output=0, prompt=range(9)), request("two", {"temperature": 0})
    batch = Batch((Segment(one, 0, 4, range(0)), *decode(two).segments))
    x = logits(1)
    assert Sampler().sample(x, batch).tokens == [None, int(x[0].argmax())]


def test_a_row_with_everything_removed_is_unusable():
    allowed = request("one", {"temperature": 1.0, "min_tokens": 10})
    x = torch.full((1, V), -torch.inf)
    x[0, 2] = 0.0
    result = Sampler().sample(x, decode(allowed))
    assert result.tokens == [None] and result.unusable == [0]
