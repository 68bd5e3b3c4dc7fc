"""C23: a plugin's code that keeps a step waiting is named in the log and counted; its answers are the same."""

from __future__ import annotations

import logging
import sys
import time

import canary_model
import numpy as np
import pytest
from canary_numbers import alone

from bestiary import LLM, Guided, SamplingParams, hookimpl
from bestiary.core.runtime import sampler
from bestiary.core.runtime.cache_groups import CacheGroup
from bestiary.core.runtime.slow_calls import SlowCalls
from bestiary.spec import Grammar, LogitsProcessor

SLOW = 0.02
ONE = [CacheGroup(1, 1)]


class Matcher:
    """Admits all; ``spec`` says what takes long."""

    is_terminated = False

    def __init__(self, spec: str) -> None:
        self.spec = spec

    def accept(self, token: int) -> bool:
        time.sleep(SLOW if self.spec == "accept" else 0)
        return True

    def fill(self, row: np.ndarray) -> None:
        time.sleep(SLOW if self.spec in ("fill", "fill and fail") else 0)
        if self.spec == "fill and fail":
            raise KeyError("no such state")
        row[:] = -1

    def fork(self) -> Matcher:
        return Matcher(self.spec)


class Provider:
    def compile(self, guided: Guided, vocabulary: object) -> Matcher:
        time.sleep(SLOW if guided.spec == "compile" else 0)
        return Matcher(guided.spec or "")


def lazy(prompt, output, logits):
    time.sleep(SLOW)
    return logits


class Hooks:
    __version__ = "7.1"

    @hookimpl
    def bestiary_register_grammars(self, register):
        register(Grammar(name="any", provider="slow_hooks:Provider"))

    @hookimpl
    def bestiary_register_logits_processors(self, register):
        register(LogitsProcessor(name="lazy", run="slow_hooks:lazy"))


@pytest.fixture
def llm(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "slow_hooks", sys.modules[__name__])
    monkeypatch.setattr(sampler, "SLOW", SLOW)
    directory = canary_model.write_config(tmp_path)
    options = {"block_size": 4, "max_batch_size": 8, "kv_cache_memory": 1 << 16, "plugins": [canary_model, Hooks()]}
    with LLM(directory, weights="random", tokenizer=None, **options) as made:
        made._driver.loop.slow_calls._slow = SLOW
        yield made


def ask(llm, caplog, **said):
    """Three tokens of a slow request beside another one; what was logged of it."""
    params = [SamplingParams(temperature=0, max_tokens=3, **one) for one in (said, {})]
    with caplog.at_level(logging.WARNING, "bestiary.runtime.slow_calls"):
        outs = llm.generate([[1, 2, 3], [4, 5]], params, use_tqdm=False)
    assert outs[1].outputs[0].token_ids == alone(ONE, [4, 5], 3)
    return outs[0].outputs[0], [r.getMessage() for r in caplog.records if r.name.endswith("slow_calls")]


@pytest.mark.parametrize(("spec", "calls"), [("accept", 2), ("fill", 3), ("compile", 1), ("neither", 0)])
def test_a_slow_grammar_is_named_once_a_request_and_counted(llm, caplog, spec, calls):
    answer, said = ask(llm, caplog, guided=Guided(spec=spec, provider="any"))
    assert answer.token_ids == alone(ONE, [1, 2, 3], 3)
    name = f"grammar any ({__name__}.Hooks 7.1)"
    assert llm.stats().slow_calls == ({name: calls} if calls else {})
    assert len(said) == (calls > 0)
    assert all(f"{name} took 0.0 s for request 0" in line for line in said)


def test_a_grammar_that_fails_after_a_long_time_is_named_too(llm, caplog):
    answer, said = ask(llm, caplog, guided=Guided(spec="fill and fail", provider="any"))
    assert answer.finish_reason == "error" and len(said) == 1


def test_a_slow_logits_processor_is_named_by_its_plugin_or_where_it_is_defined(llm, caplog):
    ask(llm, caplog, logits_processors=["lazy"])
    answer, said = ask(llm, caplog, logits_processors=[lazy])
    names = [f"logits processor lazy ({__name__}.Hooks 7.1)", f"logits processor {__name__}.lazy"]
    assert answer.token_ids == alone(ONE, [1, 2, 3], 3)
    assert llm.stats().slow_calls == {names[0]: 3, names[1]: 3}
    assert [line.partition(" took")[0] for line in said] == names


def test_the_log_has_a_plugin_once_a_request_and_not_one_line_after_another(caplog):
    now = [100.0]
    calls = SlowCalls(clock=lambda: now[0])
    with caplog.at_level(logging.WARNING):
        for request, seconds, later in (
            ("a", 2.0, 0),
            ("a", 2.0, 60),
            ("b", 0.9, 0),
            ("b", 1.5, 0),
            ("c", 1.5, 5),
            ("c", 1.5, 6),
        ):
            now[0] += later
            calls.saw("grammar x (y 1.0)", request, seconds)
    lines = [record.getMessage() for record in caplog.records]
    assert [line.rpartition("request ")[2][0] for line in lines] == ["a", "b", "c"]
    assert calls.counts == {"grammar x (y 1.0)": 5}
