"""Random programs against LLM itself, on the canary: batches, streams, beam searches and answers in asyncio that come, stay,
leave and are preempted, while prefixes outlive their time.

The accounting is checked after every step, and what is free is broken after every one.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from functools import cache
from pathlib import Path

import canary_model
import hypothesis.strategies as st
import pytest
from canary_model import poison
from canary_numbers import VOCAB, alone
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from bestiary import LLM, BeamSearchParams, RequestError, SamplingParams
from bestiary.core.runtime.cache_groups import CacheGroup

PROGRAMS = int(os.environ.get("BESTIARY_FUZZ", "0"))
TEXTS = [[(7 * i * i + 3 * kind + (i > 9) * kind) % VOCAB for i in range(40)] for kind in range(2)]


@cache
def undisturbed(windows):
    """An engine that has room for everything, and the folder that it reads."""
    folder = tempfile.TemporaryDirectory()
    directory = canary_model.write_config(Path(folder.name), windows=windows)
    options = {"weights": "random", "tokenizer": None, "plugins": [canary_model], "max_seq_len": 40}
    return LLM(directory, kv_cache_memory=1 << 20, **options), folder


@cache
def searched(windows, prompt, params):
    """The answers of a beam search that nobody disturbs."""
    out = undisturbed(windows)[0].generate([list(prompt)], params, use_tqdm=False)[0]
    return [(answer.token_ids, answer.score, answer.finish_reason) for answer in out.outputs]


class Programs(RuleBasedStateMachine):
    @initialize(
        windows=st.sampled_from([(None,), (None, 5), (7, None)]),
        block_size=st.sampled_from([1, 3, 4, 16]),
        batch=st.integers(1, 4),
        tokens=st.integers(2, 20),
        sequences=st.sampled_from([1.0, 1.4, 3.0]),
        capacity=st.sampled_from(["no-evict", "max-utilization"]),
        order=st.sampled_from(["first-come", "priority"]),
        overlaps=st.booleans(),
        reference=st.booleans(),
    )
    def start(self, windows, block_size, batch, tokens, sequences, capacity, order, overlaps, reference):
        self.folder = tempfile.TemporaryDirectory()
        self.windows, self.groups = windows, [CacheGroup(1, 1, window) for window in windows]
        whole, seen = -(-40 // block_size) + 1, -(-(7 + tokens) // block_size) + 2
        blocks = whole + (seen if len(windows) > 1 else 0)
        self.llm = LLM(
            canary_model.write_config(Path(self.folder.name), windows=windows),
            weights="random",
            tokenizer=None,
            plugins=[canary_model],
            block_size=block_size,
            max_batch_size=batch,
            max_num_tokens=tokens,
            max_seq_len=40,
            kv_cache_memory=int(sequences * blocks * block_size * 8) + 16 * block_size,
            capacity=capacity,
            queue_order=order,
            reference=reference,
        )
        self.loop = self.llm._driver.loop
        self.loop.executor.overlaps = overlaps
        self.loop.scheduler.pace.chunk = lambda: 5
        self.llm._driver.start = lambda: None  # steps are taken here, none in a thread
        self.now = 0.0
        for pool in self.loop.scheduler.tables.pools:
            pool._clock = lambda: self.now
        ordinary = self.loop.step

        def step():
            ended = ordinary()
            self.check()
            return ended

        self.loop.step = step
        self.streams, self.answers = [], []

    def params(self, output, **said):
        return SamplingParams(temperature=0, max_tokens=output, **said)

    @rule(
        texts=st.lists(st.tuples(st.integers(0, 1), st.integers(1, 39), st.integers(1, 9)), min_size=1, max_size=5),
        salt=st.sampled_from([None, None, "s"]),
        ttl=st.sampled_from([None, 1.0, 3.0]),
        priority=st.integers(-1, 1),
    )
    def generate(self, texts, salt, ttl, priority):
        params = [self.params(output, cache_salt=salt, cache_ttl=ttl, priority=priority) for _, _, output in texts]
        outs = self.llm.generate([TEXTS[t][:n] for t, n, _ in texts], params, use_tqdm=False)
        for (text, count, output), out in zip(texts, outs, strict=True):
            expected = alone(self.groups, TEXTS[text][:count], min(output, 40 - count))
            assert out.outputs[0].token_ids == expected and out.outputs[0].finish_reason == "length"
        self.check()

    @rule(text=st.integers(0, 1), count=st.integers(1, 39), output=st.integers(1, 12), logprobs=st.booleans())
    def stream(self, text, count, output, logprobs):
        prompt = TEXTS[text][:count]
        stream = self.llm.stream([prompt], self.params(output, logprobs=0 if logprobs else None))
        self.streams.append((stream, alone(self.groups, prompt, min(output, 40 - count)), []))

    @rule(text=st.integers(0, 1), count=st.integers(1, 30), n=st.integers(2, 4))
    def fork(self, text, count, n):
        """Drawn, but from logits that leave no choice."""
        params = SamplingParams(temperature=0.01, n=n, max_tokens=6)
        out = self.llm.generate([TEXTS[text][:count]], params, use_tqdm=False)[0]
        expected = alone(self.groups, TEXTS[text][:count], 6)
        assert [answer.token_ids for answer in out.outputs] == [expected] * n
        self.check()

    @rule(
        text=st.integers(0, 1),
        count=st.integers(1, 36),
        width=st.integers(1, 4),
        output=st.integers(1, 6),
        early=st.sampled_from([False, True, "never"]),
        ends=st.booleans(),
    )
    def search(self, text, count, width, output, early, ends):
        """With end tokens that the likeliest sequence has."""
        prompt = TEXTS[text][:count]
        stops = alone(self.groups, prompt, min(output, 40 - count))[1::2] if ends else []
        params = BeamSearchParams(
            beam_width=width, max_tokens=output, early_stopping=early, stop_token_ids=tuple(stops)
        )
        out = self.llm.generate([prompt], params, use_tqdm=False)[0]
        found = [(answer.token_ids, answer.score, answer.finish_reason) for answer in out.outputs]
        assert found == searched(self.windows, tuple(prompt), params)
        self.check()

    @rule(seconds=st.sampled_from([0.5, 2.0, 5.0]))
    def wait(self, seconds):
        self.now += seconds

    @rule(
        text=st.integers(0, 1),
        count=st.integers(1, 39),
        output=st.integers(1, 12),
        ttl=st.sampled_from([None, 1.0]),
        priority=st.integers(-1, 1),
    )
    def begin(self, text, count, output, ttl, priority):
        """An answer in asyncio, which others' steps take further."""
        prompt, params = TEXTS[text][:count], self.params(output, cache_ttl=ttl, priority=priority)

        async def begun():
            return self.llm.generate_async([prompt], params)

        self.answers.append((asyncio.run(begun()), alone(self.groups, prompt, min(output, 40 - count)), []))

    @precondition(lambda self: self.answers)
    @rule(which=st.integers(0, 9), pieces=st.integers(1, 4))
    def receive(self, which, pieces):
        answer, expected, found = self.answers[which % len(self.answers)]
        for _ in range(pieces):
            piece = asyncio.run(self.driven(anext(answer, None)))
            if piece is None:
                del self.answers[which % len(self.answers)]
                assert found == expected
                break
            found += piece.token_ids
            assert found == expected[: len(found)]
            assert piece.finish_reason == ("length" if len(found) == len(expected) else None) or not piece.token_ids
        self.check()

    @precondition(lambda self: self.answers)
    @rule(which=st.integers(0, 9))
    def abort(self, which):
        answer, expected, found = self.answers.pop(which % len(self.answers))
        answer.abort()
        out = asyncio.run(self.driven(answer)).outputs[0]
        assert out.token_ids == expected[: len(out.token_ids)] and len(out.token_ids) >= len(found)
        assert out.finish_reason == ("length" if out.token_ids == expected else "abort")
        self.check()

    @precondition(lambda self: self.answers)
    @rule(which=st.integers(0, 9))
    def drop(self, which):
        held = len(self.loop._endings.answers)
        answer = self.answers.pop(which % len(self.answers))[0]
        gone = not answer._job.finished
        del answer
        assert len(self.loop._endings.answers) == held - gone
        self.check()

    @rule(steps=st.integers(1, 5))
    def step(self, steps):
        for _ in range(steps):
            self.llm._driver.step()

    async def driven(self, awaited):
        """What is awaited, with steps until it is there."""

        async def waits():
            return await awaited

        task = asyncio.ensure_future(waits())
        await asyncio.sleep(0)
        for _ in range(2000):
            if task.done():
                break
            self.llm._driver.step()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        return await asyncio.wait_for(task, 10)

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), pieces=st.integers(1, 4))
    def read(self, data, pieces):
        stream, expected, found = data.draw(st.sampled_from(self.streams))
        for _ in range(pieces):
            piece = next(stream, None)
            if piece is None:
                self.streams = [each for each in self.streams if each[0] is not stream]
                assert found == expected
                break
            found += piece.token_ids
            assert found == expected[: len(found)]
        self.check()

    @precondition(lambda self: self.streams)
    @rule(data=st.data())
    def disconnect(self, data):
        gone = data.draw(st.sampled_from(self.streams))
        self.streams = [each for each in self.streams if each is not gone]
        gone[0].close()
        self.check()

    @precondition(lambda self: self.loop.scheduler.running)
    @rule(data=st.data())
    def preempt(self, data):
        self.loop.scheduler._preempt(data.draw(st.sampled_from(self.loop.scheduler.running)))

    @rule()
    def evict(self):
        self.llm.reset_prefix_cache()

    @rule(prompt=st.lists(st.integers(0, 200), min_size=40, max_size=60))
    def refuse(self, prompt):
        with pytest.raises(RequestError):
            self.llm.generate([TEXTS[0][:4], prompt], use_tqdm=False)

    def check(self):
        """The accounting holds, and the device's tables are the host's; what is free may be broken."""
        scheduler, state = self.loop.scheduler, self.llm.engine.runner.inputs.state
        scheduler.check()
        for request in scheduler.running:
            for g, table in enumerate(request.blocks):
                shown = state.tables[g][request.slot, : len(table)].tolist()
                waiting = scheduler.tables._changes[g]._placed
                for place, block in enumerate(table):
                    assert block < 0 or waiting.get((request.slot, place), shown[place]) == block
        poison(self.llm)

    def teardown(self):
        if not hasattr(self, "llm"):
            return
        for stream, expected, found in self.streams:
            for piece in stream:
                found += piece.token_ids
            assert found == expected
        for answer, expected, _ in self.answers:
            out = asyncio.run(self.driven(answer)).outputs[0]
            assert (out.token_ids, out.finish_reason) == (expected, "length")
        self.check()
        assert self.loop.idle and all(pool.num_used == 0 for pool in self.loop.scheduler.tables.pools)
        assert self.loop.scheduler.slots.num_free == self.loop.scheduler.slots.count
        self.llm.close()
        self.folder.cleanup()


TestPrograms = Programs.TestCase
TestPrograms.settings = settings(
    max_examples=PROGRAMS or 12,
    stateful_step_count=20,
    deadline=None,
    derandomize=not PROGRAMS,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
