"""Ctrl-C, exceptions that are no Exception, and calls from inside a step: nobody gets another answer for them."""

from __future__ import annotations

import asyncio
import gc
import signal
import threading

import canary_model
import pytest
import torch
from canary_numbers import VOCAB, alone

from bestiary import LLM, EngineError, SamplingParams
from bestiary.core.runtime.cache_groups import CacheGroup

ONE = [CacheGroup(1, 1)]
PROMPTS = [[(13 * i + 5 * kind) % VOCAB for i in range(6 + 4 * kind)] for kind in range(6)]
EXPECTED = [alone(ONE, prompt, 10) for prompt in PROMPTS]


def greedy(**said):
    return SamplingParams(temperature=0, max_tokens=10, **said)


def tokens(outputs):
    return [out.outputs[0].token_ids for out in outputs]


@pytest.fixture
def llm(tmp_path):
    directory = canary_model.write_config(tmp_path)
    options = {"block_size": 4, "max_batch_size": 8, "kv_cache_memory": 1 << 16, "max_num_tokens": 16}
    with LLM(directory, weights="random", tokenizer=None, plugins=[canary_model], **options) as made:
        yield made


def during_step(llm, monkeypatch, number, do, before=True):
    """Do something in the middle of step ``number``."""
    worker, steps = llm._driver.loop.executor.worker, [0]
    ordinary = worker.forward

    def forward(step):
        steps[0] += 1
        if steps[0] == number and before:
            do()
        ordinary(step)
        if steps[0] == number and not before:
            do()

    monkeypatch.setattr(worker, "forward", forward)


@pytest.fixture
def ctrl_c_interrupts():
    """Also where a shell started the tests in the background, with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c_interrupts")
@pytest.mark.parametrize("number", [1, 2, 4, 7])
def test_ctrl_c_waits_for_the_step_and_leaves_nothing_that_was_not_computed(llm, monkeypatch, number):
    during_step(llm, monkeypatch, number, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        llm.generate(PROMPTS, greedy(), use_tqdm=False)
    assert llm._driver.loop.idle and llm.stats().blocks_used == 0
    llm._driver.loop.scheduler.check()
    assert tokens(llm.generate(PROMPTS, greedy(), use_tqdm=False)) == EXPECTED
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_in_the_middle_of_a_step_ends_the_engine_rather_than_answer_wrongly(llm, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    during_step(llm, monkeypatch, 2, interrupt)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(PROMPTS, greedy(), use_tqdm=False)
    with pytest.raises(EngineError, match=r"takes no requests any more.*E-RUN-DEAD"):
        llm.generate(PROMPTS, greedy(), use_tqdm=False)


@pytest.mark.parametrize("error", [SystemExit, GeneratorExit, asyncio.CancelledError, RecursionError])
def test_whatever_a_processor_raises_ends_its_request_only(llm, error):
    def processor(prompt, output, logits):
        if len(output) == 3:
            raise error("from a processor")
        return logits

    async def main():
        answers = [llm.generate_async([p], greedy()) for p in PROMPTS]
        broken = llm.generate_async([PROMPTS[2]], greedy(logits_processors=[processor]))
        return await asyncio.wait_for(broken, 30), await asyncio.wait_for(asyncio.gather(*answers), 30)

    broken, outs = asyncio.run(main())
    assert broken.outputs[0].finish_reason == "error" and error.__name__ in broken.outputs[0].stop_reason
    assert tokens(outs) == EXPECTED
    assert tokens(llm.generate(PROMPTS, greedy(), use_tqdm=False)) == EXPECTED


def test_the_engine_can_not_be_driven_from_inside_its_own_step(llm):
    def processor(prompt, output, logits):
        if len(output) == 2:
            llm.generate([[1, 2]], greedy(), use_tqdm=False)
        return logits

    params = [greedy() for _ in PROMPTS]
    params[3] = greedy(logits_processors=[processor])
    outs = llm.generate(PROMPTS, params, use_tqdm=False)
    assert "E-RUN-INSIDE" in outs[3].outputs[0].stop_reason
    assert tokens(outs[:3] + outs[4:]) == EXPECTED[:3] + EXPECTED[4:]


@pytest.mark.parametrize("before", [True, False], ids=["decided", "launched"])
@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_a_stream_collected_in_the_middle_of_a_step_is_aborted_after_it(llm, monkeypatch, number, before):
    streams = [llm.stream([PROMPTS[n]], greedy()) for n in (1, 2)]
    for stream in streams:
        next(stream)
    during_step(llm, monkeypatch, number, lambda: (streams.clear(), gc.collect()), before)
    del stream
    assert tokens(llm.generate(PROMPTS, greedy(), use_tqdm=False)) == EXPECTED
    assert llm._driver.loop.idle and llm.stats().blocks_used == 0 and llm.stats().finished["abort"] == 2
    llm._driver.loop.scheduler.check()


def test_an_answer_dropped_after_its_event_loop_is_aborted(llm):
    kept = []

    async def main():
        kept.append(llm.generate_async([PROMPTS[0]], SamplingParams(temperature=0, max_tokens=100)))
        await anext(kept[0])

    asyncio.run(main())
    kept.clear()
    gc.collect()
    for _ in range(200):
        if llm.stats().running == 0:
            break
        threading.Event().wait(0.01)
    assert llm.stats().running == llm.stats().blocks_used == 0


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError])
def test_steps_without_memory_are_repeated_smaller(llm, monkeypatch, error):
    worker = llm._driver.loop.executor.worker
    ordinary = worker.forward

    def forward(step):
        if step.num_tokens > 10:
            raise error("too many tokens")
        ordinary(step)

    monkeypatch.setattr(worker, "forward", forward)
    assert tokens(llm.generate(PROMPTS, greedy(), use_tqdm=False)) == EXPECTED
    assert llm._driver.loop.scheduler.max_num_tokens == 8
    llm._driver.loop.scheduler.check()
    monkeypatch.setattr(worker, "forward", lambda step: (_ for _ in ()).throw(error("not even one")))
    outs = llm.generate(PROMPTS, greedy(), use_tqdm=False)
    assert all(error.__name__ in out.outputs[0].stop_reason for out in outs), "there is an end to it"
    monkeypatch.setattr(worker, "forward", ordinary)
    assert tokens(llm.generate(PROMPTS, greedy(), use_tqdm=False)) == EXPECTED
