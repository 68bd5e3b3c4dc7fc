"""Random programs of what happens to an engine: the accounting holds, and every answer is the one of an undisturbed run."""

from __future__ import annotations

import os

import hypothesis.strategies as st
import pytest
from canary import Engine, Recorder
from canary_numbers import VOCAB, alone, scores_alone
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bestiary.core.errors import RequestError
from bestiary.core.runtime.batch import Batch
from bestiary.core.runtime.cache_groups import CacheGroup
from bestiary.core.runtime.request import Request, State

MAX_SEQ_LEN = 40
# Prompts are beginnings of few texts, so that prefixes meet often.
TEXTS = [[(7 * i * i + 3 * kind + (i > 9) * kind) % VOCAB for i in range(MAX_SEQ_LEN)] for kind in range(2)]
LENGTHS = st.sampled_from([1, 2, 3, 8, 8, 16, 16, 17, 24, 24, 32, MAX_SEQ_LEN - 1])
#: How many programs run; ``make fuzz`` runs more of them, and others each time.
PROGRAMS = int(os.environ.get("BESTIARY_FUZZ", "0"))


@st.composite
def cache_groups(draw: st.DrawFn) -> list[CacheGroup]:
    size = draw(st.sampled_from([1, 2, 3, 4, 8, 16]))
    tight = draw(st.booleans())
    groups = [CacheGroup(draw(st.integers(-(-MAX_SEQ_LEN // size), (45 if tight else 90) // size + 2)), size)]
    if draw(st.booleans()):
        other, window = draw(st.sampled_from([size, size, 4])), draw(st.integers(2, 12))
        groups.append(CacheGroup(draw(st.integers(36 // other + 2, 60 // other + 3)), other, window))
    return draw(st.permutations(groups))


class Programs(RuleBasedStateMachine):
    @initialize(
        groups=cache_groups(),
        batch=st.integers(1, 5),
        tokens=st.integers(1, 24),
        caching=st.sampled_from([True, True, True, False]),
        capacity=st.sampled_from(["no-evict", "max-utilization"]),
        order=st.sampled_from(["first-come", "priority"]),
        mode=st.sampled_from(["one by one", "ahead", "ahead and late"]),
        poison=st.booleans(),
        pace=st.integers(1, 24),
    )
    def start(
        self,
        groups: list[CacheGroup],
        batch: int,
        tokens: int,
        caching: bool,
        capacity: str,
        order: str,
        mode: str,
        poison: bool,
        pace: int,
    ) -> None:
        self.now = 0.0
        self.engine = Engine(
            groups,
            batch=batch,
            tokens=tokens,
            max_seq_len=MAX_SEQ_LEN,
            overlaps=mode != "one by one",
            prefix_caching=caching,
            capacity=capacity,
            order=order,
            pace=pace,
            clock=lambda: self.now,
        )
        self.engine.looks = mode != "ahead and late"
        self.poison, self.batch_size, self.max_tokens = poison, batch, tokens
        self.aborted: set[str] = set()
        self.stops: dict[str, int] = {}
        self.failed: set[str] = set()  # were in a step that failed for good
        fail = self.engine.loop._endings.fail

        def seen(batch: Batch, error: BaseException) -> None:
            self.failed |= {request.id for request in batch.requests(self.engine.scheduler.slots)}
            fail(batch, error)

        self.engine.loop._endings.fail = seen  # type: ignore[method-assign]
        self.siblings: set[str] = set()  # may take over the first one's prompt, and with it nothing to score

    @rule(
        text=st.integers(0, 1),
        prompt=LENGTHS,
        output=st.integers(1, 12),
        siblings=st.sampled_from([0, 0, 0, 1, 3]),
        salt=st.sampled_from([None, None, None, "s"]),
        stop=st.sampled_from([None, None, 0, 1, 4]),
        scored=st.integers(0, 6).map(lambda n: 0 if n == 0 else None),
        ttl=st.sampled_from([None, None, 1.0]),
        cache_priority=st.sampled_from([35, 35, 0, 100]),
        priority=st.integers(-1, 1),
        streams=st.booleans(),
        reuse=st.integers(0, 6).map(bool),
    )
    def submit(
        self,
        text: int,
        prompt: int,
        output: int,
        siblings: int,
        salt: str | None,
        stop: int | None,
        scored: int | None,
        ttl: float | None,
        cache_priority: int,
        priority: int,
        streams: bool,
        reuse: bool,
    ) -> None:
        said: dict[str, object] = {
            "prompt_logprobs": scored,
            "cache_salt": salt,
            "cache_ttl": ttl,
            "cache_priority": cache_priority,
            "priority": priority,
            "reuse_prefix": reuse,
        }
        tokens = TEXTS[text][:prompt]
        undisturbed = alone(self.engine.groups, tokens, min(output, MAX_SEQ_LEN - prompt))
        if stop is not None and stop < len(undisturbed):
            said["stop_token_ids"] = [undisturbed[stop]]
        first: Request | None = None
        for _ in range(siblings + 1):
            made = self._submit(tokens, output, sibling=first, streams=streams, **said)
            if made is None:
                return
            if "stop_token_ids" in said:
                self.stops[made.id] = undisturbed[stop or 0]
            if first is not None:
                self.siblings.add(made.id)
            first = first or made

    def _submit(self, prompt: list[int], output: int, **said: object) -> Request | None:
        try:
            return self.engine.submit(prompt, output, **said)
        except RequestError as error:
            assert "can never fit" in str(error)
            assert self.engine.groups[0].num_blocks * self.engine.groups[0].block_size < MAX_SEQ_LEN or any(
                group.window is not None for group in self.engine.groups
            )
            return None

    @rule(seed=st.integers(100, 2000), prompt=st.integers(20, MAX_SEQ_LEN - 1))
    def fill(self, seed: int, prompt: int) -> None:
        """Something that shares nothing and takes the cached blocks of others."""
        self._submit([(seed * (i + 1)) % VOCAB for i in range(prompt)], 1)

    @rule(count=st.integers(1, 8))
    def steps(self, count: int) -> None:
        for _ in range(count):
            self.step()

    def step(self) -> None:
        message = self.engine.step(poison=self.poison)
        if message is not None:
            assert message.num_tokens <= self.max_tokens and len(message.slots) <= self.batch_size
            assert len(set(message.slots.tolist())) == len(message.slots), "a slot is in the step twice"
        assert len(self.engine.scheduler.running) <= self.batch_size
        for request in self.engine.scheduler.running:
            assert request.num_cached is not None and request.num_cached < request.prompt_length

    @precondition(lambda self: self.live())
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        """Also what a reader does who leaves."""
        request = data.draw(st.sampled_from(self.live()))
        assert self.engine.loop.abort(request)
        assert not self.engine.loop.abort(request), "a request ended twice"
        self.aborted.add(request.id)

    @precondition(lambda self: self.running())
    @rule(data=st.data())
    def preempt(self, data: st.DataObject) -> None:
        self.engine.scheduler._preempt(data.draw(st.sampled_from(self.running())))

    @rule(
        call=st.sampled_from(["forward", "sample", "read", "read"]),
        error=st.sampled_from([RuntimeError, RuntimeError, MemoryError]),
        later=st.integers(1, 3),
    )
    def fail(self, call: str, error: type[Exception], later: int) -> None:
        """A step soon to come fails, and what it stores is wrong."""
        self.engine.executor.error = error
        self.engine.executor.faults[self.engine.scheduler.number + later] = call

    @rule()
    def reset(self) -> None:
        self.engine.scheduler.reset_prefix_cache()
        assert all(pool.num_cached == 0 for pool in self.engine.scheduler.tables.pools)

    @rule(seconds=st.sampled_from([0.4, 2.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    def live(self) -> list[Request]:
        return [r for r in self.engine.requests if r.state is not State.FINISHED]

    def running(self) -> list[Request]:
        return list(self.engine.scheduler.running)

    @invariant()
    def accounts(self) -> None:
        if hasattr(self, "engine"):
            self.engine.check()

    def answers(self) -> None:
        for request in self.engine.requests:
            expected, stop = self.engine.expected(request), self.stops.get(request.id)
            if stop is not None:
                expected = expected[: expected.index(stop) + 1]
            answer: Recorder = self.engine.answers[request.id]
            if request.id in self.aborted:
                assert request.output == expected[: request.num_output], f"{request} read a wrong slot"
                assert request.finish_reason == "abort"
                continue
            if request.finish_reason == "error":
                assert request.id in self.failed and str(request.stop_reason).endswith("failed")
                assert request.output == expected[: request.num_output], f"{request} read a wrong slot"
                continue
            assert request.output == expected, f"{request} read a wrong slot"
            assert request.finish_reason == ("length" if stop is None else "stop"), request.stop_reason
            if request.watched:
                assert (answer.tokens, answer.firsts) == (len(expected), 1)
            if request.params.prompt_logprobs is not None:
                scores = scores_alone(self.engine.groups, request.prompt)
                assert answer.scores == scores or (request.id in self.siblings and not answer.scores)

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        self.engine.drain(poison=self.poison)
        self.answers()
        self.engine.check()
        self.engine.check_drained()


TestPrograms = pytest.mark.filterwarnings("error")(Programs.TestCase)
TestPrograms.settings = settings(
    max_examples=PROGRAMS or 60,
    stateful_step_count=40 if PROGRAMS else 30,
    deadline=None,
    derandomize=not PROGRAMS,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
