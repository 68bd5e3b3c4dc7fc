"""On a CUDA device: taps beside recorded graphs, and recorded calls with their times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import make_engine

from bestiary import LLM, SamplingParams
from bestiary.core import device as devices
from bestiary.core.engine.options import BuildOptions
from bestiary.core.observe.record import record
from bestiary.core.observe.roofs import measure
from bestiary.core.plugins import PluginHost

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
OPTIONS = BuildOptions(device="cuda", max_batch_size=8, max_num_tokens=64)
PARAMS = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=2)
PROMPTS: list[Any] = [[(7 * i + 5 * kind) % 90 + 3 for i in range(5 + 9 * kind)] for kind in range(5)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    directory = tmp_path_factory.mktemp("observed")
    return directory, make_engine(directory, PluginHost.load(), OPTIONS)


@pytest.fixture
def llm(tiny: tuple[Path, Any]) -> Any:
    with LLM(tiny[0] / "engine", tokenizer=None, kv_cache_memory=2**24) as opened:
        yield opened


def test_taps_change_nothing_of_what_graphs_compute(tiny: tuple[Path, Any], llm: LLM) -> None:
    """Five requests run in graphs for eight: a tapped step has the same shapes, so that the same kernels run."""
    before = llm.generate(PROMPTS, PARAMS, use_tqdm=False)
    graphs = llm.engine.runner.num_graphs
    assert graphs > 0
    llm.reset_prefix_cache()
    names = ["layers.1", "layers.0.add.0", "layers.2.attention.rope.1"]
    jobs = llm._submission.prepare(PROMPTS[:2], PARAMS)
    jobs += llm._submission.prepare(PROMPTS[2:3], PARAMS, taps=names)
    jobs += llm._submission.prepare(PROMPTS[3:], PARAMS)
    for job in jobs:
        llm._driver.submit(job)
    llm._driver.run(lambda: all(job.finished for job in jobs))
    outs = [job.output() for job in jobs]
    for out, plain in zip(outs, before, strict=True):
        assert out.outputs[0].token_ids == plain.outputs[0].token_ids
        assert out.outputs[0].logprobs == plain.outputs[0].logprobs, "to the bit"
    tokens = torch.tensor([outs[2].prompt_token_ids + outs[2].outputs[0].token_ids[:-1]])
    with torch.no_grad():
        hidden = tiny[1](tokens, output_hidden_states=True).hidden_states[2][0].numpy()
    taps = outs[2].taps
    assert taps is not None
    np.testing.assert_allclose(taps["layers.1"], hidden, atol=2e-3, rtol=2e-3)
    assert [len(taps[name]) for name in names] == [len(PROMPTS[2]) + 11] * 3
    assert llm.engine.runner.num_graphs == graphs


def test_every_call_is_timed_alone(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    before = llm.generate(PROMPTS, params, use_tqdm=False)
    found = record(llm, PROMPTS, 6)
    assert [out.outputs[0].token_ids for out in found.outputs] == [out.outputs[0].token_ids for out in before]
    assert all(0 < call.seconds < 0.1 for call in found.calls)
    for step in found.steps:
        for call, following in zip(step.calls, step.calls[1:], strict=False):
            assert call.began + call.seconds <= following.began, "they follow each other"
    assert 0 < found.in_calls < found.wall
    assert llm.engine.runner.observer is None


def test_roofs_are_those_of_a_gpu() -> None:
    device = devices.choose("cuda")
    roofs = measure(device, torch.bfloat16)
    assert min(roofs.copy, roofs.read) > 1e11
    assert roofs.flops > 1e13


def test_a_timed_call_counts_what_the_device_does() -> None:
    """A long pause on the device, which the host has launched at once."""
    device = devices.choose("cuda")
    short, long = (devices.timed(lambda n=n: torch.cuda._sleep(n), device) for n in (10**6, 10**8))
    assert long > 20 * short > 0
