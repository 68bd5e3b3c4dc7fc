"""An engine whose step never ends (C11): whoever waits for it, in whatever way, is told once, and nothing hangs with it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import canary_model
import pytest
from canary_numbers import VOCAB, alone

from bestiary import LLM, BeamSearchParams, EngineError, SamplingParams
from bestiary.core.runtime.cache_groups import CacheGroup
from bestiary.core.watchdog import StepLimits, Watchdog

PROMPTS = [[(13 * i + 5 * kind) % VOCAB for i in range(6 + 4 * kind)] for kind in range(6)]
PARAMS = SamplingParams(temperature=0, max_tokens=10)
EXPECTED = [alone([CacheGroup(1, 1)], prompt, 10) for prompt in PROMPTS]


class Hang:
    """The next forward of an LLM waits until it is let go; the watchdog looks when the test says so, on a clock of its own."""

    def __init__(self, llm: LLM) -> None:
        self.driver, self.worker = llm._driver, llm._driver.loop.executor.worker
        self.reached, self.resume = threading.Event(), threading.Event()
        self.forward = self.worker.forward
        self.worker.forward = self._forward
        self.now, self.pulse = 1000.0, self.driver.loop.pulse
        self.pulse.clock = lambda: self.now
        self.dog = Watchdog(self.pulse, StepLimits(), report=lambda: None, give_up=self.driver._give_up)

    def _forward(self, step):
        self.worker.forward = self.forward
        self.reached.set()
        assert self.resume.wait(60)
        self.forward(step)

    def wait(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now += 1
            self.dog.look()


@pytest.fixture
def llm(tmp_path) -> Iterator[LLM]:
    directory = canary_model.write_config(tmp_path)
    options = {"block_size": 4, "max_batch_size": 8, "kv_cache_memory": 1 << 16, "max_num_tokens": 64}
    options |= {"step_warning": None, "step_timeout": None}
    with LLM(directory, weights="random", tokenizer=None, plugins=[canary_model], **options) as made:
        assert tokens(made.generate(PROMPTS, PARAMS, use_tqdm=False)) == EXPECTED
        made._driver.loop.pulse._longest.clear()  # all steps are the first of their kind
        yield made


def tokens(outputs):
    return [out.outputs[0].token_ids for out in outputs]


def in_thread(call):
    """Run it beside the test; the list holds what came of it."""
    came: list[object] = []

    def run():
        try:
            came.append(call())
        except Exception as error:
            came.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, came


async def until(condition):
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("it did not happen")


def test_everyone_who_waits_is_told_once_and_nobody_comes_after(llm):
    hang = Hang(llm)

    async def read(answer):
        return [piece async for piece in answer]

    async def main():
        loop = llm._driver.loop
        first = asyncio.ensure_future(read(llm.generate_async(PROMPTS[0], PARAMS)))
        await until(hang.reached.is_set)
        whole, beams = (
            llm.generate_async(PROMPTS[1], PARAMS),
            llm.generate_async(PROMPTS[2], BeamSearchParams(beam_width=2, max_tokens=4)),
        )
        waiting = in_thread(lambda: llm.generate(PROMPTS[:3], PARAMS, use_tqdm=False))
        streaming = in_thread(lambda: list(llm.stream(PROMPTS[3], PARAMS)))
        await until(lambda: len(llm._driver._inbox) >= 6)
        hang.wait(310)
        late = llm.generate_async(PROMPTS[4], PARAMS)
        stats = llm.stats()
        assert stats.stalled and stats.step_under_way == 310, "and it was still taken"
        hang.wait(900)
        assert loop.failure is not None
        outs = [*await asyncio.gather(whole, beams, late)]
        pieces = await first
        for thread, _ in (waiting, streaming):
            thread.join(10)
            assert not thread.is_alive()
        return [out.outputs[0] for out in outs], pieces, waiting[1], streaming[1][0]

    ended, pieces, refused, streamed = asyncio.run(asyncio.wait_for(main(), 60))
    for answer in [*ended, pieces[-1], streamed[-1]]:
        assert answer.finish_reason == "error"
        assert "E-RUN-DEAD" in answer.stop_reason or "E-RUN-STUCK" in answer.stop_reason
        assert "does not end" in answer.stop_reason
    assert sum(piece.finish_reason is not None for piece in pieces) == 1
    assert isinstance(refused[0], EngineError) and "does not end" in str(refused[0])
    for call in (lambda: llm.generate(PROMPTS, PARAMS), lambda: list(llm.stream(PROMPTS[0], PARAMS))):
        with pytest.raises(EngineError, match=r"does not end.*E-RUN-DEAD"):
            call()
    began = time.monotonic()
    llm.close()
    assert time.monotonic() - began < 30, "it does not wait for the step"
    finished = dict(llm._driver.loop.meters.finished)
    hang.resume.set()
    llm._driver._thread.join(10)
    assert not llm._driver._thread.is_alive(), "the thread ends once its call is back"
    assert llm._driver.loop.meters.finished == finished, "and has nothing to tell"


def test_a_late_step_that_ends_after_all_disturbs_nobody(llm):
    """C21."""
    hang = Hang(llm)
    thread, came = in_thread(lambda: llm.generate(PROMPTS, PARAMS, use_tqdm=False))
    assert hang.reached.wait(30)
    hang.wait(600)
    assert llm.stats().stalled
    hang.resume.set()
    thread.join(30)
    assert tokens(came[0]) == EXPECTED and not llm.stats().stalled
    assert tokens(llm.generate(PROMPTS, PARAMS, use_tqdm=False)) == EXPECTED


def test_who_is_in_the_step_himself_is_told_when_it_comes_back(llm):
    hang = Hang(llm)
    thread, came = in_thread(lambda: llm.generate(PROMPTS, PARAMS, use_tqdm=False))
    assert hang.reached.wait(30)
    hang.wait(1300)
    assert thread.is_alive() and llm._driver.loop.idle
    hang.resume.set()
    thread.join(30)
    assert isinstance(came[0], EngineError) and came[0].code == "E-RUN-STUCK"
    llm._driver.loop.executor.close()


def test_the_watchdog_of_an_llm_has_the_limits_of_its_options(tmp_path):
    directory = canary_model.write_config(tmp_path)
    options = {"weights": "random", "tokenizer": None, "plugins": [canary_model], "kv_cache_memory": 1 << 14}
    with LLM(directory, step_warning=0.01, step_timeout=0.03, **options) as llm:
        worker = llm._driver.loop.executor.worker
        forward, resume = worker.forward, threading.Event()
        worker.forward = lambda step: (resume.wait(60), forward(step))
        thread, came = in_thread(lambda: llm.generate(PROMPTS[:1], PARAMS, use_tqdm=False))
        for _ in range(10_000):
            if llm._driver.loop.failure is not None:
                break
            time.sleep(0.002)
        resume.set()
        thread.join(30)
        assert isinstance(came[0], EngineError) and came[0].code == "E-RUN-STUCK"
    with pytest.raises(ValueError, match="step_timeout: no time"):
        LLM(directory, step_timeout=-1, **options)
