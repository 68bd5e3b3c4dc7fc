"""Features and faults of single requests among 64 others, on the canary: survivors are those of an undisturbed run."""

from __future__ import annotations

import math
import sys

import canary_model
import numpy as np
import pytest
import torch
from canary_numbers import VOCAB, alone

from bestiary import LLM, BeamSearchParams, EngineError, Guided, SamplingParams, hookimpl
from bestiary.core.jobs import SamplingJob
from bestiary.core.runtime import restrictions
from bestiary.core.runtime.admission import Admission
from bestiary.core.runtime.answers import Answers
from bestiary.core.runtime.cache_groups import CacheGroup
from bestiary.core.runtime.messages import StepMessage, TableChanges
from bestiary.core.runtime.queue import WaitingQueue
from bestiary.core.runtime.scheduler import Scheduler
from bestiary.spec import Grammar, LogitsProcessor

ONE = [CacheGroup(1, 1)]
PROMPTS = [[(13 * i + 5 * (kind % 7)) % VOCAB for i in range(3 + kind % 17)] for kind in range(64)]
CALLS: list[int] = []


class Matcher:
    """Admits even tokens; breaks where ``spec`` says."""

    def __init__(self, spec: str) -> None:
        self.spec, self.seen, self.is_terminated = spec, 0, False

    def accept(self, token: int) -> bool:
        self.seen += 1
        if self.spec == "accept raises" and self.seen == 3:
            raise KeyError("no such state")
        return not (self.spec == "accept refuses" and self.seen == 3)

    def fill(self, row: np.ndarray) -> None:
        if self.spec == "fill raises" and self.seen == 2:
            raise KeyError("no such state")
        row[:] = 0 if self.spec == "nothing allowed" and self.seen == 2 else 0x55555555

    def fork(self) -> Matcher | None:
        if self.spec == "fork raises":
            raise KeyError("no such state")
        return None if self.spec == "fork gives none" else Matcher(self.spec)


class Provider:
    def compile(self, guided: Guided, vocabulary: object) -> Matcher | str | None:
        if guided.spec == "no grammar":
            raise ValueError("not a grammar")
        if guided.spec == "compile raises":
            raise KeyError("no such rule")
        if guided.spec == "compile exits":
            raise SystemExit(3)
        other = {"compile gives none": None, "compile gives text": "text"}
        return other[guided.spec] if guided.spec in other else Matcher(guided.spec or "")


class Unmade:
    def __init__(self) -> None:
        raise OSError("no such file")


def odd_only(prompt, output, logits):
    logits[::2] = -torch.inf
    return logits


class Hooks:
    @hookimpl
    def bestiary_register_grammars(self, register):
        register(Grammar(name="even", provider="canary_hooks:Provider"))
        register(Grammar(name="unmade", provider="canary_hooks:Unmade"))

    @hookimpl
    def bestiary_register_logits_processors(self, register):
        register(LogitsProcessor(name="odd", run="canary_hooks:odd_only"))


@pytest.fixture(scope="module", autouse=True)
def importable():
    """Plugins name what they bring by import strings."""
    sys.modules["canary_hooks"] = sys.modules[__name__]
    yield
    del sys.modules["canary_hooks"]


@pytest.fixture(params=[False, True], ids=["one by one", "ahead"])
def llm(request, tmp_path):
    directory = canary_model.write_config(tmp_path)
    options = {"block_size": 4, "kv_cache_memory": 1 << 18, "max_num_tokens": 256, "max_batch_size": 80}
    plugins = [canary_model, Hooks()]
    with LLM(directory, weights="random", tokenizer=None, plugins=plugins, **options) as made:
        made._driver.loop.executor.overlaps = request.param
        yield made


def greedy(max_tokens=8, **said):
    return SamplingParams(temperature=0, max_tokens=max_tokens, **said)


def among_others(llm, params, prompt=(1, 2, 3)):
    """The output of a request in the middle of 64 others, which must not notice."""
    prompts = [*PROMPTS[:32], list(prompt), *PROMPTS[32:]]
    outs = llm.generate(prompts, [*[greedy()] * 32, params, *[greedy()] * 32], use_tqdm=False)
    victim = outs.pop(32)
    assert [out.outputs[0].token_ids for out in outs] == [alone(ONE, p, 8) for p in PROMPTS]
    assert all(out.outputs[0].finish_reason == "length" for out in outs)
    llm._driver.loop.scheduler.check()
    assert llm.stats().blocks_used == 0
    return victim


def failed(victim):
    assert victim.finished and victim.outputs[0].finish_reason == "error"
    return victim.outputs[0].stop_reason


@pytest.mark.parametrize(
    ("spec", "cause", "count"),
    [
        ("accept raises", "KeyError: 'no such state'", 3),
        ("accept refuses", "the grammar does not admit token", 3),
        ("fill raises", "KeyError: 'no such state'", 2),
        ("nothing allowed", "the grammar allows no token here", 2),
    ],
)
def test_a_grammar_that_breaks_ends_its_request_only(llm, spec, cause, count):
    victim = among_others(llm, greedy(guided=Guided(spec=spec, provider="even")))
    assert failed(victim).startswith(f"grammar even ({__name__}.Hooks unversioned): {cause}")
    assert len(victim.outputs[0].token_ids) == count


@pytest.mark.parametrize(
    ("spec", "n", "cause"),
    [
        ("compile raises", 1, "KeyError: 'no such rule'"),
        ("compile exits", 1, "SystemExit: 3"),
        ("compile gives none", 1, "compile returned None, which is no GrammarMatcher: it has no accept, fill, fork"),
        ("compile gives text", 1, "compile returned a str, which is no GrammarMatcher"),
        ("fork raises", 2, "KeyError: 'no such state'"),
        ("fork gives none", 2, "fork returned None, which is no GrammarMatcher"),
        ("__init__", 1, "OSError: no such file"),
    ],
)
def test_a_grammar_that_breaks_before_its_request_begins_ends_that_one_only(llm, spec, n, cause):
    guided = Guided(spec=spec, provider="unmade" if spec == "__init__" else "even")
    victim = among_others(llm, SamplingParams(temperature=n - 1, n=n, max_tokens=8, guided=guided))
    reasons = [out.stop_reason for out in victim.outputs]
    assert (
        failed(victim).startswith(f"grammar {guided.provider} ({__name__}.Hooks unversioned): ") and cause in reasons[0]
    )
    assert reasons == [reasons[0]] * n and not any(out.token_ids for out in victim.outputs)
    assert llm.stats().finished == {"length": 64, "error": n} and llm._driver.loop.idle
    pieces = list(llm.stream([[1]], SamplingParams(guided=guided, temperature=n - 1, n=n)))
    assert [(piece.finish_reason, piece.stop_reason) for piece in pieces] == [("error", reasons[0])] * n


def no_memory(*given, **said):
    raise MemoryError("no memory is left")


def at_call(number, function):
    """Fails at its call of this number only."""
    count = [0]

    def sometimes(*given, **said):
        count[0] += 1
        return no_memory() if count[0] == number else function(*given, **said)

    return sometimes


PARTS = [
    (Answers, "add", 33),
    (Admission, "add", 33),
    (WaitingQueue, "add", 33),
    (Scheduler, "admissible", 98),  # each is looked at before the first is taken in
    (restrictions.Restriction, "__init__", 1),
    (restrictions.NgramIndex, "__init__", 1),
    (restrictions.NgramIndex, "append", 5),
    (restrictions.Restriction, "history", 2),
    (restrictions, "bitmask", 1),
]


@pytest.mark.parametrize(("where", "name", "number"), PARTS, ids=lambda one: getattr(one, "__name__", str(one)))
def test_no_memory_on_the_host_for_one_request_ends_that_one_only(llm, monkeypatch, where, name, number):
    """C17: in all that is done for a request when it is taken in, and what is kept of it for each token."""
    monkeypatch.setattr(where, name, at_call(number, getattr(where, name)))
    params = greedy(no_repeat_ngram_size=2, allowed_token_ids=range(VOCAB), logits_processors=[odd_only])
    assert failed(among_others(llm, params)) == "MemoryError: no memory is left"
    assert llm.stats().finished == {"length": 64, "error": 1} and llm._driver.loop.idle


@pytest.mark.parametrize("number", [1, 2, 3, 6], ids=lambda number: f"request {number} of it")
@pytest.mark.parametrize(("where", "name"), [(Answers, "add"), (Admission, "add"), (Scheduler, "admissible")])
def test_no_memory_on_the_host_for_a_beam_ends_its_search_only(llm, monkeypatch, where, name, number):
    """C17."""
    plain = getattr(where, name)

    def sometimes(self, request, *given):
        return of_beams(self, request, *given) if request.part else plain(self, request, *given)

    of_beams = at_call(number, plain)
    monkeypatch.setattr(where, name, sometimes)
    victim = among_others(llm, BeamSearchParams(beam_width=3, max_tokens=5))
    assert failed(victim) == "MemoryError: no memory is left"
    assert llm.stats().finished == {"length": 64, "error": 1} and llm._driver.loop.idle


def test_a_request_that_gets_lost_is_missed(llm, monkeypatch):
    """C17: whatever is at fault, nobody waits for ever."""
    monkeypatch.setattr(SamplingJob, "start", lambda self, loop: None)
    with pytest.raises(EngineError, match="E-RUN-LOST"):
        llm.generate([[1], [2]], greedy(), use_tqdm=False)
    with pytest.raises(EngineError, match="E-RUN-LOST"):
        list(llm.stream([[1]], greedy()))


def test_a_grammar_rules_every_token(llm):
    out = among_others(llm, greedy(guided=Guided(spec="even", provider="even")))
    assert out.outputs[0].finish_reason == "length" and not any(token % 2 for token in out.outputs[0].token_ids)


def raises(prompt, output, logits):
    if len(output) == 2:
        raise ValueError("no such word")
    return logits


def misshapen(prompt, output, logits):
    return logits[:-1] if len(output) == 2 else logits


def breaks(prompt, output, logits):
    return logits * math.nan if len(output) == 2 else logits


def booleans(prompt, output, logits):
    return logits > 0 if len(output) == 2 else logits


def complexes(prompt, output, logits):
    return logits + 1j if len(output) == 2 else logits


def metas(prompt, output, logits):
    return logits.to("meta") if len(output) == 2 else logits


def sparses(prompt, output, logits):
    return logits.to_sparse() if len(output) == 2 else logits


@pytest.mark.parametrize(
    ("processor", "cause"),
    [
        (raises, f"logits processor {__name__}.raises: ValueError: no such word"),
        (misshapen, f"logits processor {__name__}.misshapen: TypeError: it returned a tensor of shape [{VOCAB - 1}]"),
        (booleans, f"logits processor {__name__}.booleans: TypeError: it returned numbers of torch.bool, not logits"),
        (
            complexes,
            f"logits processor {__name__}.complexes: TypeError: it returned numbers of torch.complex64, not logits",
        ),
        (metas, f"logits processor {__name__}.metas: TypeError: it returned a tensor of no data, not dense logits"),
        (
            sparses,
            f"logits processor {__name__}.sparses: TypeError: it returned a tensor of torch.sparse_coo, not dense logits",
        ),
        (breaks, f"logits processor {__name__}.breaks: its logits have no finite maximum"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.parametrize("temperature", [0, 1])
def test_a_logits_processor_that_breaks_ends_its_request_only(llm, processor, cause, temperature):
    said = SamplingParams(temperature=temperature, max_tokens=8, logits_processors=[processor])
    victim = among_others(llm, said)
    assert cause in failed(victim) and len(victim.outputs[0].token_ids) == 2


def test_what_a_logits_processor_does_to_its_ids_is_not_seen_by_the_next(llm):
    seen = []

    def spoils(prompt, output, logits):
        seen.append((list(prompt), list(output)))
        for ids in (prompt, output):
            ids.insert(0, 7)
        return logits

    prompt = [400, 401, 402]
    out = llm.generate([prompt], greedy(3, logits_processors=[spoils, spoils]), use_tqdm=False)[0].outputs[0]
    assert seen == [(prompt, out.token_ids[:at]) for at in (0, 0, 1, 1, 2, 2)]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0, 1])
def test_the_processor_that_leaves_no_token_is_named_and_the_cache_is_not_to_blame(llm, bad, temperature):
    def spoils(prompt, output, logits):
        return torch.full_like(logits, bad)

    prompt = list(range(500, 520))
    llm.generate([prompt], greedy(2), use_tqdm=False)
    said = SamplingParams(temperature=temperature, max_tokens=4, logits_processors=["odd", spoils, "odd"])
    victim = llm.generate([[*prompt, 7]], said, use_tqdm=False)[0]
    assert failed(victim).endswith("spoils: its logits have no finite maximum") and __name__ in failed(victim)
    assert victim.num_preemptions == 0
    assert llm.generate([[*prompt, 8]], greedy(2), use_tqdm=False)[0].num_cached_tokens == 20
    assert llm.generate([[*prompt, 7, 9]], greedy(2), use_tqdm=False)[0].num_cached_tokens == 21, "nor what it stored"


@pytest.mark.parametrize("processors", [None, ["odd"]])
def test_restrictions_that_leave_no_token_are_named(llm, processors):
    said = greedy(4, allowed_token_ids=[5], no_repeat_ngram_size=1, logits_processors=processors)
    victim = among_others(llm, said)
    assert failed(victim) == "its own restrictions (grammar, bans, allowed tokens): no token is left"
    assert len(victim.outputs[0].token_ids) == 1


def test_a_registered_logits_processor_is_called_by_name(llm):
    out = among_others(llm, greedy(logits_processors=["odd"]))
    assert all(token % 2 for token in out.outputs[0].token_ids)


def test_a_logits_processor_comes_after_allowed_token_ids_and_may_change_what_they_left(llm):
    def other(prompt, output, logits):
        assert logits.isfinite().nonzero().flatten().tolist() == [5, 6]
        logits[9] = 1e4
        return logits

    out = among_others(llm, greedy(3, allowed_token_ids=[5, 6], logits_processors=[other]))
    assert out.outputs[0].token_ids == [9, 9, 9]


def test_a_logits_processor_sees_prompt_and_output(llm):
    seen = []

    def look(prompt, output, logits):
        seen.append((list(prompt), list(output)))
        return logits

    out = among_others(llm, greedy(4, logits_processors=[look]))
    answer = out.outputs[0].token_ids
    assert answer == alone(ONE, (1, 2, 3), 4)
    assert seen == [([1, 2, 3], answer[:count]) for count in range(4)]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=["nan", "inf", "minus-inf"])
@pytest.mark.parametrize("temperature", [0, 1])
def test_broken_logits_end_their_request_and_what_it_stored_is_scrubbed(llm, bad, temperature, monkeypatch):
    """C19, a row at a time."""
    runner, broken, scrubbed = llm.engine.runner, [], set()
    forward, store = runner.forward, runner.inputs.store.tensors

    def poisoned(step):
        clean = step.tables[0].scrubbed.tolist()
        for tensor in store.values():
            tensor[clean] = 1e6  # what nobody stores
        outputs = forward(step)
        assert not any((tensor[clean] == 1e6).any() for tensor in store.values()), "not scrubbed on the device"
        scrubbed.update(clean)
        requests = llm._driver.loop.scheduler.slots.requests
        rows = range(len(step.slots)) if step.rows is None else None
        for n, slot in enumerate(step.slots.tolist()):
            owner = requests[slot]
            if rows is not None and owner is not None and owner.params.max_tokens == 20 and owner.num_output > 3:
                outputs["logits"][n] = bad
                broken.append(list(owner.blocks[0]))
        return outputs

    monkeypatch.setattr(runner, "forward", poisoned)
    victim = among_others(llm, SamplingParams(temperature=temperature, max_tokens=20), prompt=range(300, 320))
    assert failed(victim).startswith("numerical_error") and broken
    llm.generate([[5]], greedy(1), use_tqdm=False)
    assert broken[0][-1] in scrubbed, "the last one, which no good token has shown to be sound"
    again = llm.generate([list(range(300, 320))], greedy(4), use_tqdm=False)[0]
    assert again.num_cached_tokens == 19 and again.outputs[0].token_ids == alone(ONE, range(300, 320), 4)


def test_a_device_scrubs_blocks_before_it_copies_any(llm):
    """So what is copied into a scrubbed block stays, and what is copied out of one is zeros."""
    inputs = llm.engine.runner.inputs
    for tensor in inputs.store.tensors.values():
        tensor[:6] = torch.arange(1.0, 7.0).view(6, 1, 1, 1)
    ints = [np.array(each, np.int32) for each in ([], [], [], [1, 4], [3, 5], [2, 3, 4])]
    none = np.zeros(0, np.int32)
    inputs.change(StepMessage(1, none, none, 0, none, None, (), (TableChanges(*ints),), 0))
    for tensor in inputs.store.tensors.values():
        assert [set(block.flatten().tolist()) for block in tensor[:6]] == [{1.0}, {2.0}, {0.0}, {2.0}, {0.0}, {0.0}]


def test_several_answers_share_the_prompt(llm):
    prompt = list(range(40, 61))
    params = SamplingParams(temperature=0.01, n=3, best_of=4, max_tokens=6)
    before = llm.stats()
    out = llm.generate([prompt], params, use_tqdm=False)[0]
    assert [answer.token_ids for answer in out.outputs] == [alone(ONE, prompt, 6)] * 3
    assert [answer.index for answer in out.outputs] == [0, 1, 2] and out.outputs[0].logprobs is None
    after = llm.stats()
    assert after.cached_tokens - before.cached_tokens == 3 * 20


def test_answers_differ_by_their_seeds_and_answer_0_is_that_of_one(llm):
    def wide(prompt, output, logits):
        return logits * 0

    params = {"temperature": 1.0, "seed": 7, "max_tokens": 5, "logits_processors": [wide]}
    several = llm.generate([[1, 2]], SamplingParams(n=4, **params), use_tqdm=False)[0].outputs
    one = llm.generate([[1, 2]], SamplingParams(**params), use_tqdm=False)[0].outputs[0]
    assert several[0].token_ids == one.token_ids
    assert len({tuple(answer.token_ids) for answer in several}) == 4


def test_an_answer_that_failed_takes_no_sound_ones_place(llm):
    def wide(prompt, output, logits):
        if output and output[0] % 2 == 0:
            raise ValueError("an even beginning")
        return logits * 0

    params = {"temperature": 1.0, "seed": 7, "max_tokens": 3, "logits_processors": [wide]}
    many = llm.generate([[1, 2]], SamplingParams(n=8, **params), use_tqdm=False)[0].outputs
    sound = sum(answer.finish_reason == "length" for answer in many)
    assert 0 < sound < 7, "some fail"
    best = llm.generate([[1, 2]], SamplingParams(n=sound + 1, best_of=8, **params), use_tqdm=False)[0].outputs
    assert [answer.finish_reason for answer in best] == ["length"] * sound + ["error"]


def test_a_prompt_is_cut_to_its_last_tokens(llm):
    out = llm.generate([list(range(30))], greedy(4, truncate_prompt_tokens=5), use_tqdm=False)[0]
    assert out.prompt_token_ids == [25, 26, 27, 28, 29]
    assert out.outputs[0].token_ids == alone(ONE, range(25, 30), 4)


def test_stats_and_events_tell_what_happened(llm):
    assert llm.cache_events() == []
    prompt = list(range(12))
    for _ in range(2):
        out = llm.generate([prompt], greedy(2), use_tqdm=False)[0]
    stats = llm.stats()
    assert out.num_cached_tokens == 11 and out.cache_miss is None
    assert (stats.running, stats.waiting, stats.blocks_used, stats.preemptions) == (0, 0, 0, 0)
    assert stats.finished == {"length": 2} and stats.output_tokens == 4 and stats.cached_tokens == 11
    assert stats.cache_misses == {"unseen": 1}
    stored = [event for event in llm.cache_events() if event.kind == "stored"]
    assert [event.tokens for event in stored[:3]] == [4, 4, 4] and llm.cache_events() == []
    llm.reset_prefix_cache()
    assert [event.kind for event in llm.cache_events()] == ["cleared"]


def test_logprobs_go_to_those_who_asked(llm):
    """Some with, some without, one of them ended before its token was read."""
    params = [greedy(1 + i % 5, logprobs=(0, 2, None)[i % 3]) for i in range(24)]
    outs = llm.generate(PROMPTS[:24], params, use_tqdm=False)
    for i, out in enumerate(outs):
        answer = out.outputs[0]
        assert answer.token_ids == alone(ONE, PROMPTS[i], 1 + i % 5)
        if i % 3 == 2:
            assert answer.logprobs is None
            continue
        chosen = [entry[token] for entry, token in zip(answer.logprobs, answer.token_ids, strict=True)]
        assert all(value.rank == 1 and value.logprob > -2 for value in chosen)
