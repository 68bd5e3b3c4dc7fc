"""What is refused of a call is refused before anything of it is queued."""

from __future__ import annotations

import pytest
from canary import Engine
from canary_numbers import VOCAB

from bestiary import RequestError, SamplingParams, hookimpl
from bestiary.core.calls import Calls
from bestiary.core.driver import Driver
from bestiary.core.plugins import PluginHost
from bestiary.core.runtime.cache_groups import CacheGroup
from bestiary.core.runtime.ranks import RankExecutor
from bestiary.core.submission import Submission
from bestiary.spec import LogitsProcessor


class Hooks:
    @hookimpl
    def bestiary_register_logits_processors(self, register):
        register(LogitsProcessor(name="same", run="test_submission:same"))


def same(prompt, output, logits):
    return logits


@pytest.mark.parametrize(
    "function", [same, lambda *given: given[-1], print, Hooks], ids=["named", "lambda", "C", "class"]
)
def test_a_function_is_refused_where_ranks_are_other_processes(tmp_path, function):
    engine = Engine([CacheGroup(64, 4)], overlaps=RankExecutor.overlaps)
    engine.executor.takes_functions = RankExecutor.takes_functions
    submission = Submission(
        tmp_path,
        None,
        vocab_size=VOCAB,
        max_seq_len=engine.max_seq_len,
        host=PluginHost.load(plugins=[Hooks()]),
        takes_functions=engine.executor.takes_functions,
    )
    driver = Driver(engine.loop)
    calls = Calls(driver, submission)
    good = SamplingParams(temperature=0, max_tokens=4, logits_processors=["same"])
    bad = SamplingParams(temperature=0, max_tokens=4, logits_processors=["same", function])
    neighbour = calls.pieces([5, 6, 7], good)
    next(neighbour)
    with pytest.raises(RequestError, match="logits_processors: a function can't go to the processes") as refused:
        calls.whole([[1, 2], [3, 4]], [good, bad], shown=False)
    error = refused.value
    assert error.code == "E-REQ-LOGITS-PROCESSORS" and error.expected == "names of registered ones: same"
    assert " at 0x" not in str(error) and "register it with a plugin" in str(error)
    assert len(engine.scheduler.running) == 1 and not engine.scheduler.waiting, "only the neighbour"
    assert [piece.finish_reason for piece in neighbour][-1] == "length"
    (out,) = calls.whole([[1, 2]], good, shown=False)
    assert out.outputs[0].finish_reason == "length"
    driver.close()
