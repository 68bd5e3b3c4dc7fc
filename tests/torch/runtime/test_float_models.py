"""A real model in fp32: chunks, prefixes, preemption and company change no answer; its log-probabilities are transformers'."""

from __future__ import annotations

import json
import random

import pytest
import torch
from tiny import SMALL, make_engine

from bestiary import LLM, SamplingParams
from bestiary.core.plugins import PluginHost

BLOCK = 16 * 3 * 2 * 2 * 12 * 4  # bytes: tokens, layers, keys and values, heads, head size, float32
CONFIG = {
    **SMALL,
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "torch_dtype": "float32",
    "rope_theta": 10000.0,
}
RNG = random.Random(11)
SHARED = [RNG.randrange(3, 96) for _ in range(70)]
PROMPTS = [[*SHARED[: RNG.choice([0, 33, 70])], *(RNG.randrange(3, 96) for _ in range(1 + i))] for i in range(64)]
PARAMS = [SamplingParams(temperature=0, max_tokens=6 + i % 7, ignore_eos=True, logprobs=1) for i in range(64)]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    directory = tmp_path_factory.mktemp("floats")
    (directory / "config.json").write_text(json.dumps(CONFIG))

    def opened(**options):
        small = {"kv_cache_memory": 1200 * BLOCK, "max_seq_len": 160, "prefix_caching": False}
        return LLM(directory, weights="random", tokenizer=None, device="cpu", **{**small, **options})

    return opened


@pytest.fixture(scope="module")
def alone(make):
    with make() as llm:
        return [llm.generate([p], s, use_tqdm=False)[0].outputs[0] for p, s in zip(PROMPTS, PARAMS, strict=True)]


def same(found, expected):
    """Equal tokens; where they part, the two were as likely as each other."""
    for mine, other in zip(found, expected, strict=True):
        for at, (left, right) in enumerate(zip(mine.token_ids, other.token_ids, strict=True)):
            if left != right:
                gap = mine.logprobs[at][left].logprob - other.logprobs[at][right].logprob
                assert abs(gap) <= 1e-4, f"token {at}: {left} in place of {right}"
                break


def run(llm, count=64):
    return [out.outputs[0] for out in llm.generate(PROMPTS[:count], PARAMS[:count], use_tqdm=False)]


@pytest.mark.parametrize("tokens", [1, 7, 64, 8192], ids=["1", "7", "64", "whole"])
def test_chunks_of_any_size(make, alone, tokens):
    count = 12 if tokens == 1 else 24
    with make(max_num_tokens=tokens) as llm:
        same(run(llm, count), alone[:count])


@pytest.mark.parametrize("caching", [True, False], ids=["prefix cache", "none"])
def test_among_64(make, alone, caching):
    with make(prefix_caching=caching) as llm:
        for _ in range(2):
            same(run(llm), alone)
        assert (llm.stats().cached_tokens > 0) == caching


def test_preempted(make, alone):
    tight = {"block_size": 1, "kv_cache_memory": 170 * BLOCK // 16}
    with make(capacity="max-utilization", prefix_caching=True, **tight) as llm:
        same(run(llm, 32), alone[:32])
        assert llm.stats().preemptions > 0


def test_log_probabilities_are_transformers(tmp_path):
    model = make_engine(tmp_path, PluginHost.load(strict=True))
    prompts = [[5, 9, 13, 4], list(range(3, 40)), [7]]
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, logprobs=5, prompt_logprobs=3)
    with LLM(tmp_path / "engine", tokenizer=None, kv_cache_memory=1 << 22, max_seq_len=128) as llm:
        outs = llm.generate(prompts, params, use_tqdm=False)
    for prompt, out in zip(prompts, outs, strict=True):
        answer = out.outputs[0]
        with torch.no_grad():
            expected = model(torch.tensor([[*prompt, *answer.token_ids]])).logits[0].log_softmax(-1)
        assert out.prompt_logprobs[0] is None and len(out.prompt_logprobs) == len(prompt)
        entries = [(row, prompt[row + 1], entry, 3) for row, entry in enumerate(out.prompt_logprobs[1:])]
        first = len(prompt) - 1
        entries += [(first + i, answer.token_ids[i], entry, 5) for i, entry in enumerate(answer.logprobs)]
        for row, token, entry, count in entries:
            best = expected[row].topk(count)
            assert token in entry and set(entry) <= {token, *best.indices.tolist()}
            for each, value in entry.items():
                assert value.logprob == pytest.approx(float(expected[row, each]), abs=1e-4)
            listed = sorted((value.logprob for value in entry.values()), reverse=True)[:count]
            assert listed == pytest.approx(best.values.tolist(), abs=1e-4)
        total = sum(entry[token].logprob for token, entry in zip(answer.token_ids, answer.logprobs, strict=True))
        assert answer.cumulative_logprob == pytest.approx(total, abs=1e-4)
