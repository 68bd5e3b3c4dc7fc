"""A device that dies ends the engine at the call where it shows, be it the forward, the choice, or the last read."""

from __future__ import annotations

import canary_model
import pytest

from bestiary import LLM, EngineError, SamplingParams
from bestiary.core import device as devices
from bestiary.core.runtime import worker


@pytest.fixture
def llm(tmp_path):
    config = canary_model.write_config(tmp_path)
    options = {"weights": "random", "tokenizer": None, "plugins": [canary_model], "max_seq_len": 64}
    with LLM(config, kv_cache_memory=2**20, **options) as made:
        yield made


def breaks(monkeypatch, owner, name, at):
    """From a call on it raises, and so does whatever asks the device afterwards."""
    real, calls = getattr(owner, name), []

    def failing(*given):
        calls.append(given)
        if len(calls) >= at:
            raise RuntimeError("device-side assert triggered")
        return real(*given)

    def synchronize(device):
        if len(calls) >= at:
            raise RuntimeError("device-side assert triggered")

    monkeypatch.setattr(owner, name, failing)
    monkeypatch.setattr(devices, "synchronize", synchronize)


@pytest.mark.parametrize("overlaps", [False, True], ids=["one by one", "ahead"])
@pytest.mark.parametrize(("owner", "name"), [("Worker", "forward"), ("Worker", "sample"), ("Reading", "read")])
def test_a_dead_device_ends_the_engine_where_it_shows(llm, monkeypatch, owner, name, overlaps):
    llm._driver.loop.executor.overlaps = overlaps
    breaks(monkeypatch, getattr(worker, owner), name, at=3)
    params = SamplingParams(temperature=0, max_tokens=3)
    with pytest.raises(EngineError, match="E-RUN-DEVICE"):
        llm.generate([[1, 2, 3]], params, use_tqdm=False)
    with pytest.raises(EngineError, match=r"takes no requests any more.*does not work any more"):
        llm.generate([[4, 5, 6]], params, use_tqdm=False)


def test_a_device_that_answers_goes_on_after_a_failed_read(llm, monkeypatch):
    read, calls = worker.Reading.read, []

    def failing(self):
        calls.append(self)
        if len(calls) == 2:
            raise RuntimeError("the copy failed")
        return read(self)

    monkeypatch.setattr(worker.Reading, "read", failing)
    params = SamplingParams(temperature=0, max_tokens=3)
    failed = llm.generate([[1, 2, 3]], params, use_tqdm=False)[0].outputs[0]
    assert (failed.finish_reason, failed.stop_reason) == ("error", "RuntimeError: the copy failed")
    assert llm.generate([[1, 2, 3]], params, use_tqdm=False)[0].outputs[0].finish_reason == "length"
