"""Several answers to a prompt on a real model: siblings, the best of many, and beams as transformers finds them."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from tiny import make_engine

from bestiary import LLM, BeamSearchParams, RequestError, SamplingParams
from bestiary.core.plugins import PluginHost

PROMPTS = [[5, 6, 7, 8] * 6, [9, 10, 11], [*[5, 6, 7, 8] * 6, 3]]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("several")
    return directory, make_engine(directory, PluginHost.load())


@pytest.fixture(scope="module", params=["no-evict", "max-utilization"])
def llm(model, request):
    with LLM(model[0] / "engine", tokenizer=None, kv_cache_memory=2**22, capacity=request.param) as made:
        yield made


def generate(llm, prompt, **said):
    return llm.generate([{"prompt_token_ids": prompt}], SamplingParams(**said), use_tqdm=False)[0]


def test_answer_i_is_the_one_of_seed_plus_i_and_shares_the_prompt(llm):
    llm.reset_prefix_cache()
    before = llm.stats()
    out = generate(llm, PROMPTS[0], n=4, seed=7, temperature=1.5, max_tokens=12, ignore_eos=True)
    after = llm.stats()
    assert [answer.index for answer in out.outputs] == [0, 1, 2, 3]
    # The first answer computes the prompt, each of the others its last token only.
    assert after.cached_tokens - before.cached_tokens == 3 * (len(PROMPTS[0]) - 1)
    for index, answer in enumerate(out.outputs):
        alone = generate(llm, PROMPTS[0], seed=7 + index, temperature=1.5, max_tokens=12, ignore_eos=True)
        assert answer.token_ids == alone.outputs[0].token_ids
    assert len({tuple(answer.token_ids) for answer in out.outputs}) == 4


def test_siblings_share_without_the_prefix_cache(model):
    with LLM(model[0] / "engine", tokenizer=None, kv_cache_memory=2**22, prefix_caching=False) as llm:
        generate(llm, PROMPTS[0], n=4, seed=7, temperature=1.0, max_tokens=4, ignore_eos=True)
        assert llm.stats().cached_tokens == 3 * (len(PROMPTS[0]) - 1)


def test_the_best_have_the_greatest_mean_log_probability(llm):
    said = {"seed": 3, "temperature": 1.5, "max_tokens": 10}
    many = generate(llm, PROMPTS[1], n=8, logprobs=0, **said).outputs
    ranked = sorted(many, key=lambda answer: -answer.cumulative_logprob / len(answer.token_ids))
    best = generate(llm, PROMPTS[1], n=3, best_of=8, **said).outputs
    assert [answer.token_ids for answer in best] == [answer.token_ids for answer in ranked[:3]]
    assert [answer.index for answer in best] == [0, 1, 2] and best[0].logprobs is None
    assert [answer.token_ids for answer in ranked] != [answer.token_ids for answer in many], "the order says nothing"
    pieces = list(llm.stream({"prompt_token_ids": PROMPTS[1]}, SamplingParams(n=3, best_of=8, **said)))
    assert [(piece.index, piece.token_ids) for piece in pieces] == [(i, a.token_ids) for i, a in enumerate(best)]


@pytest.mark.parametrize("length_penalty", [-0.5, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("early_stopping", [False, True, "never"])
def test_beams_are_those_of_transformers(model, llm, length_penalty, early_stopping):
    params = BeamSearchParams(
        beam_width=4, max_tokens=14, length_penalty=length_penalty, early_stopping=early_stopping, stop_token_ids=[40]
    )
    outs = llm.generate([{"prompt_token_ids": prompt} for prompt in PROMPTS], params, use_tqdm=False)
    for prompt, out in zip(PROMPTS, outs, strict=True):
        theirs = model[1].generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            num_beams=4,
            num_return_sequences=4,
            max_new_tokens=14,
            do_sample=False,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            eos_token_id=[2, 40],
            pad_token_id=0,
            output_scores=True,
            return_dict_in_generate=True,
        )
        assert len(out.outputs) == 4
        for answer, sequence, score in zip(out.outputs, theirs.sequences, theirs.sequences_scores, strict=True):
            assert answer.token_ids == sequence[len(prompt) :].tolist()[: len(answer.token_ids)]
            assert answer.score == pytest.approx(float(score), abs=1e-4)
            assert answer.finish_reason == ("stop" if answer.token_ids[-1] in (2, 40) else "length")


@pytest.fixture
def computed(llm, monkeypatch):
    """Of each step: its tokens, and how many requests were under way."""
    worker, seen = llm._driver.loop.executor.worker, SimpleNamespace(tokens=[], under_way=[])
    forward = worker.forward

    def run(step):
        seen.tokens.append(step.num_tokens)
        seen.under_way.append(llm.stats().running + llm.stats().waiting)
        forward(step)

    monkeypatch.setattr(worker, "forward", run)
    return seen


def test_beams_beside_other_requests_reuse_their_parents_blocks(llm, computed):
    llm.reset_prefix_cache()
    alone = generate(llm, PROMPTS[0], temperature=0, max_tokens=20, ignore_eos=True).outputs[0].token_ids
    prompts = [{"prompt_token_ids": PROMPTS[0]}, {"prompt_token_ids": PROMPTS[2]}]
    params = [
        SamplingParams(temperature=0, max_tokens=20, ignore_eos=True),
        BeamSearchParams(beam_width=3, max_tokens=20),
    ]
    plain, searched = llm.generate(prompts, params, use_tqdm=False)
    assert plain.outputs[0].token_ids == alone
    assert searched.finished and len(searched.outputs) == 3
    after = llm.stats()
    assert after.running == after.waiting == after.blocks_used == 0
    whole = sum(len(PROMPTS[2]) + length for length in range(20)) * 3
    assert sum(computed.tokens) < 0.2 * whole, "the beams' prompts were computed"


def figures(llm):
    stats = llm.stats()
    return Counter(
        {**stats.finished, "prompt": stats.prompt_tokens, "cached": stats.cached_tokens, "output": stats.output_tokens}
    )


def test_a_search_counts_as_the_one_request_that_it_is(llm, computed):
    llm.reset_prefix_cache()
    prompt = {"prompt_token_ids": PROMPTS[0]}
    params = BeamSearchParams(beam_width=4, max_tokens=10, ignore_eos=True)
    for cached in (0, len(PROMPTS[0]) - 1):
        before = figures(llm)
        out = llm.generate(prompt, params, use_tqdm=False)[0]
        assert out.num_cached_tokens == cached
        expected = {"length": 1, "prompt": len(PROMPTS[0]), "cached": cached, "output": 1 + 4 * 9}
        assert figures(llm) - before == Counter(expected)
    assert set(computed.under_way) == {1}


def test_a_search_that_is_left_or_fails_is_one_ended_request(llm, monkeypatch):
    prompt, params = {"prompt_token_ids": PROMPTS[0]}, BeamSearchParams(beam_width=4, max_tokens=10, ignore_eos=True)

    async def leave():
        answer = llm.generate_async(prompt, params)
        answer.abort()
        return (await answer).outputs[0].finish_reason

    before = figures(llm)
    assert asyncio.run(leave()) == "abort"
    worker = llm._driver.loop.executor.worker
    forward = worker.forward
    monkeypatch.setattr(worker, "forward", lambda step: 1 / 0 if len(step.slots) > 1 else forward(step))
    assert llm.generate(prompt, params, use_tqdm=False)[0].outputs[0].finish_reason == "error"
    ended = figures(llm) - before
    assert (ended["abort"], ended["error"], ended["length"], ended["stop"]) == (1, 1, 0, 0)


def test_a_search_says_how_often_its_beams_were_preempted(model, monkeypatch):
    params = BeamSearchParams(beam_width=2, max_tokens=3, ignore_eos=True)
    prompt = {"prompt_token_ids": PROMPTS[0] * 3}  # of more tokens than a step has
    with LLM(model[0] / "engine", tokenizer=None, kv_cache_memory=2**22, prefix_caching=False) as llm:
        expected = llm.generate(prompt, params, use_tqdm=False)[0]
        scheduler, preempted = llm._driver.loop.scheduler, []
        decide = scheduler.decide

        def preempting():
            for request in [one for one in scheduler.running if one.id not in preempted]:
                preempted.append(request.id)
                scheduler._preempt(request)
            return decide()

        monkeypatch.setattr(scheduler, "decide", preempting)
        out = llm.generate(prompt, params, use_tqdm=False)[0]
        assert len(preempted) > 1 and out.num_preemptions == len(preempted) == llm.stats().preemptions
        assert expected.num_preemptions == 0 and out.outputs == expected.outputs


def test_a_search_that_can_never_fit_is_refused(model):
    with LLM(model[0] / "engine", tokenizer=None, max_seq_len=64, kv_cache_memory=2**22) as llm:
        with pytest.raises(RequestError, match="longer than the context"):
            llm.generate([[5] * 64], BeamSearchParams(beam_width=2), use_tqdm=False)
        (out,) = llm.generate([[5] * 60], BeamSearchParams(beam_width=2, max_tokens=None), use_tqdm=False)
        assert max(len(answer.token_ids) for answer in out.outputs) == 4
