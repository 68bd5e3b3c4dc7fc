"""32 mixed requests on a real tiny model: in one call each gets exactly the tokens that it gets alone."""

from __future__ import annotations

import random

import pytest
import torch
from tiny import make_engine

from bestiary import LLM, SamplingParams
from bestiary.core.plugins import PluginHost

BLOCK_BYTES = 16 * 3 * 2 * 2 * 12 * 4  # tokens, layers, keys and values, heads, head size, float32


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny products are faster on one thread than spread over several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    directory = tmp_path_factory.mktemp("mixed")
    make_engine(directory, PluginHost.load(strict=True))
    return directory / "engine"


@pytest.fixture(scope="module")
def requests():
    rng = random.Random(7)
    shared = [rng.randrange(3, 96) for _ in range(100)]
    lengths = [1, 200, *(rng.randint(1, 200) for _ in range(30))]
    prompts = [(shared[: i * 7 % 90] + [rng.randrange(3, 96) for _ in range(200)])[:n] for i, n in enumerate(lengths)]
    outputs = [64, 1, *(rng.randint(1, 64) for _ in range(30))]
    return prompts, [
        SamplingParams(temperature=0.8 * (i % 2), seed=i, max_tokens=n, ignore_eos=True) for i, n in enumerate(outputs)
    ]


@pytest.fixture(scope="module")
def alone(engine, requests):
    with LLM(engine, tokenizer=None, kv_cache_memory=100 * BLOCK_BYTES, prefix_caching=False) as llm:
        return [llm.generate([p], s, use_tqdm=False)[0].outputs[0].token_ids for p, s in zip(*requests, strict=True)]


@pytest.mark.parametrize("blocks", [800, 40], ids=["roomy", "requests-wait"])
@pytest.mark.parametrize("caching", [True, False], ids=["prefix-cache", "no-prefix-cache"])
def test_in_one_call(engine, requests, alone, blocks, caching):
    options = {"kv_cache_memory": blocks * BLOCK_BYTES, "prefix_caching": caching, "max_seq_len": 272}
    with LLM(engine, tokenizer=None, **options) as llm:
        assert llm.engine.cache_groups[0].block_size == 16
        found = llm.generate(*requests, use_tqdm=False)
        scheduler = llm._driver.loop.scheduler
        scheduler.check()
        assert scheduler.tables.pools[0].num_blocks <= blocks and scheduler.tables.pools[0].num_used == 0
    assert [out.outputs[0].token_ids for out in found] == alone
    assert [len(tokens) for tokens in alone] == [params.max_tokens for params in requests[1]]
    assert any(out.num_cached_tokens for out in found) or not (caching and blocks == 40)
