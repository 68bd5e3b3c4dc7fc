"""E07: engines that were opened, used in every way, broken and closed leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import canary_model
import pytest
from canary_numbers import VOCAB, alone
from process_state import held, resident

from bestiary import LLM, BeamSearchParams, EngineError, SamplingParams
from bestiary.core.runtime.cache_groups import CacheGroup

PROMPTS = [[(13 * i + 5 * kind) % VOCAB for i in range(6 + 4 * kind)] for kind in range(6)]
PARAMS = SamplingParams(temperature=0, max_tokens=6)
EXPECTED = [alone([CacheGroup(1, 1)], prompt, 6) for prompt in PROMPTS]
MIB = 2**20


def fails(prompt, output, logits):
    raise ValueError("no such word")


def use(llm: LLM) -> None:
    """Whole batches, streams and answers that are left, requests and steps that fail."""
    outs = llm.generate(PROMPTS, PARAMS, use_tqdm=False)
    assert [out.outputs[0].token_ids for out in outs] == EXPECTED
    llm.generate(PROMPTS[:2], BeamSearchParams(beam_width=2, max_tokens=3), use_tqdm=False)
    llm.generate(PROMPTS[0], SamplingParams(max_tokens=4, logits_processors=[fails]), use_tqdm=False)
    llm.generate(PROMPTS[0], SamplingParams(temperature=1.0, seed=1, n=3, max_tokens=4, logprobs=2), use_tqdm=False)
    stream = llm.stream(PROMPTS[1], PARAMS)
    next(stream)
    del stream
    asyncio.run(read_some(llm))
    worker = llm._driver.loop.executor.worker
    forward, worker.forward = worker.forward, lambda step: 1 / 0
    assert llm.generate(PROMPTS[2], PARAMS, use_tqdm=False)[0].outputs[0].finish_reason == "error"
    worker.forward = forward
    llm.generate(PROMPTS[:2], PARAMS, use_tqdm=False)


async def read_some(llm: LLM) -> None:
    dropped, kept = llm.generate_async(PROMPTS[3], PARAMS), llm.generate_async(PROMPTS[4], PARAMS)
    aborted = llm.generate_async(PROMPTS[5], PARAMS)
    await anext(dropped)
    del dropped
    aborted.abort()
    assert (await kept).outputs[0].token_ids == EXPECTED[4]


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A model and the options that open it; temporary files are the test's own."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    options = {"block_size": 4, "max_batch_size": 8, "kv_cache_memory": 1 << 16, "max_num_tokens": 64}
    options |= {"weights": "random", "tokenizer": None, "plugins": [canary_model]}
    return {"model": canary_model.write_config(tmp_path), **options}


def test_what_engines_held_is_given_back(model):
    counts = []
    for _ in range(3):
        with LLM(**model) as llm:
            use(llm)
            assert {"bestiary-watchdog", "bestiary-engine"} <= {thread.name for thread in threading.enumerate()}
        counts.append(held())
    assert not counts[2].more_than(counts[0])


def test_what_dead_engines_held_is_given_back(model, monkeypatch):
    with LLM(**model) as llm:
        use(llm)
    before = held()
    monkeypatch.setattr("bestiary.core.runtime.scheduler.Scheduler.decide", lambda self: 1 / 0)
    for _ in range(3):
        with LLM(**model) as llm, pytest.raises(EngineError, match="E-RUN-LOOP"):
            use(llm)
    assert not held().more_than(before)


def test_what_hung_engines_held_is_given_back_once_their_step_ends(model):
    with LLM(**model) as llm:
        use(llm)
    before = held()
    with LLM(step_timeout=0.01, **model) as llm:
        worker, resume = llm._driver.loop.executor.worker, threading.Event()
        forward, worker.forward = worker.forward, lambda step: resume.wait(60) and forward(step)
        assert "does not end" in asyncio.run(whole(llm)).outputs[0].stop_reason
    assert held().more_than(before) == {"threads": {"bestiary-engine": 1}, "tasks": 1}
    thread = llm._driver._thread
    resume.set()
    thread.join(10)
    assert not held().more_than(before)


async def whole(llm):
    return await llm.generate_async(PROMPTS[0], PARAMS)


def test_engines_that_nobody_closed_are_given_back(model):
    llm = LLM(**model)
    use_shortly(llm)
    engines = [weakref.ref(llm.engine)]
    for _ in range(3):
        llm = LLM(**model)
        use_shortly(llm)
        engines.append(weakref.ref(llm.engine))
    thread = llm._driver._watchdog._thread
    del llm
    gc.collect()
    assert not any(engine() for engine in engines)
    thread.join(10)
    assert not held().threads["bestiary-watchdog"]


def test_memory_does_not_grow_with_the_engines_opened(model):
    """Some are opened before the first look: allocators keep what they had, once."""
    sizes = list[int]()
    for _ in range(3):
        for _ in range(5):
            with LLM(**model) as llm:
                use_shortly(llm)
        sizes.append(resident())
    assert sizes[2] - sizes[0] < MIB, [f"{size / MIB:.1f} MiB" for size in sizes]


def use_shortly(llm: LLM) -> None:
    assert llm.generate(PROMPTS[0], PARAMS, use_tqdm=False)[0].outputs[0].token_ids == EXPECTED[0]
