"""Taps of requests: what comes back is what transformers has at that place, and nobody else notices."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import canary_model
import numpy as np
import pytest
import torch
from canary import VOCAB, alone
from tiny import make_engine

from bestiary import LLM, BeamSearchParams, RequestError, SamplingParams
from bestiary.core.engine.taps import TapPrograms
from bestiary.core.plugins import PluginHost
from bestiary.core.runtime.cache_groups import CacheGroup

LAYER, SWALLOWED, KEYS = "layers.1.output", "layers.0.add.0", "layers.2.attention.rope.1"
PROMPTS = [[(5 * i + 11 * kind + 3) % 90 + 3 for i in range(4 + 3 * kind)] for kind in range(16)]
PARAMS = SamplingParams(temperature=0, max_tokens=7, ignore_eos=True, logprobs=2)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    directory = tmp_path_factory.mktemp("tapped")
    return directory, make_engine(directory, PluginHost.load())


@pytest.fixture
def make(tiny: tuple[Path, Any]) -> Any:
    opened = []

    def made(**options: Any) -> LLM:
        llm = LLM(tiny[0] / "engine", tokenizer=None, **{"kv_cache_memory": 1 << 22, **options})
        opened.append(llm)
        return llm

    yield made
    for each in opened:
        each.close()


def run(llm: LLM, prompts: Any, params: Any = PARAMS, **options: Any) -> Any:
    return llm.generate(prompts, params, use_tqdm=False, **options)


def expected(model: Any, out: Any, layer: int) -> np.ndarray:
    """transformers' hidden state after a layer, of the tokens that were computed."""
    tokens = torch.tensor([out.prompt_token_ids + out.outputs[0].token_ids[:-1]])
    with torch.no_grad():
        return model(tokens, output_hidden_states=True).hidden_states[layer + 1][0].numpy()


def test_a_request_alone_gets_what_transformers_has(tiny, make) -> None:
    (out,) = run(make(), PROMPTS[3], taps=[LAYER, "layers.0", "norm.input"])
    assert list(out.taps) == [LAYER, "layers.0", "norm.input"]
    assert out.taps[LAYER].dtype == np.float32
    assert out.taps[LAYER].shape == (len(PROMPTS[3]) + 6, 48)
    for name, layer in ((LAYER, 1), ("layers.0", 0)):
        np.testing.assert_allclose(out.taps[name], expected(tiny[1], out, layer), atol=1e-4, rtol=1e-4)


def test_the_last_piece_of_a_stream_has_what_an_output_has(make) -> None:
    llm = make()
    (out,) = run(llm, PROMPTS[3], taps=[LAYER])
    *pieces, last = llm.stream(PROMPTS[3], PARAMS, taps=[LAYER])
    assert pieces and all(piece.taps is None for piece in pieces)
    np.testing.assert_array_equal(last.taps[LAYER], out.taps[LAYER])
    assert [piece.taps for piece in llm.stream(PROMPTS[3], PARAMS)] == [None] * 7
    assert [piece.taps for piece in llm.stream(PROMPTS[3], PARAMS, taps=None)] == [None] * 7
    (out,) = llm.generate([PROMPTS[3]], PARAMS, taps=None, use_tqdm=False)
    assert out.taps is None
    with pytest.raises(RequestError, match="E-TAP-NAME"):
        llm.stream(PROMPTS[3], PARAMS, taps=["layers.1.outptu"])


@pytest.mark.parametrize("overlaps", [False, True], ids=["one by one", "ahead"])
def test_among_others_in_chunks_and_only_they_are_kept(tiny, make, overlaps: bool) -> None:
    llm = make()
    llm._driver.loop.executor.overlaps = overlaps
    untouched = run(llm, PROMPTS)
    llm.reset_prefix_cache()
    jobs = llm._submission.prepare(PROMPTS[:8], PARAMS)
    jobs += llm._submission.prepare(PROMPTS[8:10], PARAMS, taps=[LAYER, SWALLOWED])
    jobs += llm._submission.prepare(PROMPTS[10:11], PARAMS, taps=[KEYS])
    jobs += llm._submission.prepare(PROMPTS[11:], PARAMS)
    for job in jobs:
        llm._driver.submit(job)
    llm._driver.run(lambda: all(job.finished for job in jobs))
    outs = [job.output() for job in jobs]
    for out, before in zip(outs, untouched, strict=True):
        assert out.outputs[0].token_ids == before.outputs[0].token_ids
        assert out.outputs[0].logprobs == before.outputs[0].logprobs, "to the bit"
    for out in outs[8:10]:
        np.testing.assert_allclose(out.taps[LAYER], expected(tiny[1], out, 1), atol=1e-4, rtol=1e-4)
        assert (out.num_cached_tokens, out.cache_miss) == (0, "disabled")
    assert outs[10].taps[KEYS].shape == (len(PROMPTS[10]) + 6, 2, 12)
    assert all(out.taps is None for out in (*outs[:8], *outs[11:]))


def test_what_a_fusion_swallowed_is_made_beside_it(make) -> None:
    """The fused call gives the same sum to the bit: both are sums of the same two tensors."""
    llm = make()
    assert llm.engine.network.fusions["residual_norm"] and llm.engine.network.fusions["rotary_cache"]
    (out,) = run(llm, PROMPTS[2], taps=[SWALLOWED, "layers.0.mlp_norm.input", "layers.0.attention", "embed", KEYS])
    np.testing.assert_array_equal(out.taps[SWALLOWED], out.taps["layers.0.mlp_norm.input"])
    np.testing.assert_array_equal(out.taps[SWALLOWED], out.taps["embed"] + out.taps["layers.0.attention"])
    k = llm.engine.runner.inputs.store.tensors["k.layers.2.attention.cache"].flatten(0, 1)
    stored = k[k.flatten(1).any(1)][: len(out.taps[KEYS])]
    np.testing.assert_allclose(out.taps[KEYS], stored.numpy(), atol=1e-6)


def test_the_engine_goes_on_without_them_as_before(make) -> None:
    llm = make()
    runner = llm.engine.runner
    run(llm, PROMPTS[:2], taps=[LAYER])
    seen: list[Any] = []
    own = runner.program.run
    runner.program.run = lambda sizes: seen.append(sizes) or own(sizes)  # type: ignore[method-assign,func-returns-value]
    run(llm, PROMPTS[2:4])
    assert len(seen) == 7, "the engine's own program runs the steps in which nobody taps"
    assert llm._driver.loop.scheduler.slots.num_tapped == 0


def test_no_weight_is_held_twice_and_few_programs_stay(make) -> None:
    llm = make()
    for layer in range(3):
        run(llm, PROMPTS[:1], taps=[f"layers.{layer}"])
        run(llm, PROMPTS[:1], taps=[f"layers.{layer}.mlp_norm.input"])
    taps, own = llm.engine.taps, llm.engine.runner.program
    assert isinstance(taps, TapPrograms) and len(taps._made) == 4
    for program in taps._made.values():
        assert all(tensor is own._weights[weight] for weight, tensor in program._weights.items())
        assert all(program._kernels[call] is kernels for call, kernels in own._kernels.items())


def test_what_it_computes_may_be_reused_by_others(make) -> None:
    llm = make()
    long = PROMPTS[15]
    run(llm, long)
    (tapped,) = run(llm, long, taps=["layers.0"])
    assert (tapped.num_cached_tokens, tapped.cache_miss) == (0, "disabled")
    llm.reset_prefix_cache()
    run(llm, long, taps=["layers.0"])
    assert run(llm, long)[0].num_cached_tokens > 0


def test_the_reference_mode_shows_modules(tiny, make) -> None:
    llm = make(reference=True)
    (out,) = run(llm, PROMPTS[1], taps=[LAYER, "layers.2.input"])
    np.testing.assert_allclose(out.taps[LAYER], expected(tiny[1], out, 1), atol=1e-4, rtol=1e-4)
    np.testing.assert_array_equal(out.taps[LAYER], out.taps["layers.2.input"])
    with pytest.raises(RequestError, match="reference mode does not show"):
        run(llm, PROMPTS[1], taps=[KEYS])


def test_awaited_and_chat_free_answers_have_them(make) -> None:
    llm = make()

    async def main() -> Any:
        return await llm.generate_async(PROMPTS[0], PARAMS, taps=["embed"])

    out = asyncio.run(main())
    assert out.taps["embed"].shape == (len(PROMPTS[0]) + 6, 48)


@pytest.mark.parametrize(
    ("taps", "says"),
    [
        (["layers.1.atention"], "near it: layers.1.attention"),
        (["zzz"], "names look like layers.0.attention"),
        (["head"], r"no row for each token; found float32\[R, 96\].*norm"),
        ("layers.1", "no list of names"),
        (["layers.1", 3], "no list of names"),
        (5, "no list of names; found 5"),
    ],
)
def test_what_can_not_be_kept_is_refused(make, taps: Any, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        run(make(), PROMPTS[0], taps=taps)


@pytest.mark.parametrize(
    "params",
    [SamplingParams(n=2), SamplingParams(best_of=2, n=1), BeamSearchParams(beam_width=2, max_tokens=3)],
    ids=repr,
)
def test_several_answers_are_refused(make, params: Any) -> None:
    with pytest.raises(RequestError, match="one answer"):
        run(make(), PROMPTS[0], params, taps=["layers.1"])


def test_a_memory_limit_that_has_no_room_refuses_them(make) -> None:
    import psutil

    llm = make(memory_limit=int(psutil.Process().memory_info().rss) + 2**31)
    taps = llm.engine.taps
    assert isinstance(taps, TapPrograms) and 2**30 < taps._room < 2**31, "what the engine leaves of 2 GiB"
    taps._room = 100_000
    with pytest.raises(RequestError, match=r"more memory than memory_limit leaves .* expected at most 100,000 bytes"):
        run(llm, PROMPTS[0], taps=["layers.1"])
    taps._room = 2**20
    (out,) = run(llm, PROMPTS[0], taps=["layers.1"])
    assert out.taps["layers.1"].shape == (len(PROMPTS[0]) + 6, 48)
    assert sum(program.activation_bytes for program in taps._made.values()) <= 2**20


def test_broken_rows_come_back_as_they_are(make) -> None:
    llm = make()
    for weights in (llm.engine.runner.program._weights, llm.engine.taps._weights):
        weight = next(weight for weight in weights if weight.name == "layers.2.mlp.down.weight")
        weights[weight] = torch.full_like(weights[weight], float("nan"))
    (out,) = run(llm, PROMPTS[4], taps=["layers.1", "layers.2"])
    assert out.outputs[0].finish_reason == "error" and "numerical_error" in out.outputs[0].stop_reason
    assert out.taps["layers.2"].shape == (len(PROMPTS[4]), 48) and np.isnan(out.taps["layers.2"]).all()
    assert np.isfinite(out.taps["layers.1"]).all()


@pytest.mark.parametrize("overlaps", [False, True], ids=["one by one", "ahead"])
def test_preempted_and_computed_anew_no_position_is_double(tmp_path, overlaps: bool) -> None:
    """The canary's checksum at a position is the token that follows it: the taps foretell the answer, whatever happens."""
    directory = canary_model.write_config(tmp_path / "canary", windows=(None,))
    small = {"block_size": 4, "max_batch_size": 8, "max_num_tokens": 16, "max_seq_len": 64, "kv_cache_memory": 560}
    llm = LLM(directory, weights="random", tokenizer=None, plugins=[canary_model], capacity="max-utilization", **small)
    with llm:
        llm._driver.loop.executor.overlaps = overlaps
        name = next(name for name in llm.engine.taps.names if name.endswith("checksum"))
        prompts = [[(11 * i + 7 * kind + 3) % VOCAB for i in range(9 + 5 * kind)] for kind in range(6)]
        outs = run(llm, prompts, SamplingParams(temperature=0, max_tokens=8), taps=[name])
        assert sum(out.num_preemptions for out in outs) > 0
        for out in outs:
            tokens = out.prompt_token_ids + out.outputs[0].token_ids
            sums = out.taps[name][:, 0]
            assert len(sums) == len(tokens) - 1
            assert sums[len(out.prompt_token_ids) - 1 :].tolist() == out.outputs[0].token_ids
            first = alone([CacheGroup(1, 1, None)], out.prompt_token_ids[:3], 1)
            assert sums[2] == first[0]


def test_an_aborted_request_has_what_was_computed(make) -> None:
    llm = make()
    (job,) = llm._submission.prepare(
        PROMPTS[5], SamplingParams(temperature=0, max_tokens=50, ignore_eos=True), taps=["embed"]
    )
    llm._driver.submit(job)
    for _ in range(3):
        llm._driver.step()
    llm._driver.post(job.abort)
    out = job.output()
    assert out.outputs[0].finish_reason == "abort"
    assert len(out.taps["embed"]) == len(PROMPTS[5]) + len(out.outputs[0].token_ids) - 1
